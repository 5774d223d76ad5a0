"""The operator's side of the fake gateway: keys, accounts and what is set on them, in memory. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_KNOWN = frozenset({"keys", "accounts", "organizations", "projects", "budgets", "limits", "prices", "credits"})


class FakeOperator:
    """Answers `/admin/v1`.

    Attributes:
        keys: By id.
        commands: Every document that was posted, with its route, in order.
    """

    def __init__(self) -> None:
        self.keys: dict[str, dict[str, Any]] = {}
        self.commands: list[tuple[str, dict[str, Any]]] = []

    def handle(
        self, method: str, path: str, query: Mapping[str, str], body: bytes | None
    ) -> tuple[int, dict[str, Any]]:
        """Status and document for a request."""
        parts = path.removeprefix("/admin/v1/").split("/")
        if parts[0] not in _KNOWN:
            return 404, {"code": "not_found", "detail": f"the fake gateway has no {path}"}
        if method == "GET":
            rows = list(self.keys.values()) if parts == ["keys"] else self._accounts(parts[0])
            return 200, self._page(rows, query)
        if method == "DELETE":
            found = self.keys.get(parts[-1])
            if found is None:
                return 404, {"code": "not_found", "detail": f"there is no key {parts[-1]!r}"}
            changed = found["revoked_at"] is None
            found["revoked_at"] = "2026-01-01T00:00:00Z"
            return 200, {"id": parts[-1], "changed": changed}
        document: dict[str, Any] = json.loads(body or b"{}")
        self.commands.append((path, document))
        if parts == ["keys"]:
            return 201, self._create(document)
        if parts[-1] == "rotate":
            return 201, self._create(self.keys.get(parts[1], {}))
        if parts == ["prices"]:
            return 200, {"versions": [{"model": document["model"], "id": "price_2"}]}
        return 200, {"id": document.get("account", ""), "changed": True}

    def _create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        number = len(self.keys) + 1
        key_id = f"key_{number:04d}"
        self.keys[key_id] = {
            "id": key_id,
            "name": document.get("name", ""),
            "prefix": f"hg_{number}",
            "project": document.get("project", ""),
            "scopes": ["inference", "usage"],
            "revoked_at": None,
        }
        return {"id": key_id, "key": f"hg_{number:030d}_000000", "project": "prj_1", "organization": "org_1"}

    def _accounts(self, kind: str) -> list[dict[str, Any]]:
        names = sorted({key["project"] for key in self.keys.values()})
        if kind == "organizations":
            return [{"id": "org_1", "kind": "organization", "name": "default"}]
        return [
            {"id": f"prj_{at}", "kind": "project", "name": name, "parent": "org_1"}
            for at, name in enumerate(names, 1)
        ]

    def _page(self, rows: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
        wanted = query.get("project")
        rows = [row for row in rows if wanted is None or row.get("project") == wanted]
        after = query.get("after", "")
        rows = [row for row in rows if row["id"] > after]
        size = int(query.get("limit", "100"))
        more = len(rows) > size
        return {"data": rows[:size], "has_more": more, "after": rows[size - 1]["id"] if more else None}
