"""The API's description (OpenAPI 3.1), made from the structs that read requests. `docs/openapi.json` is a copy.

`python -m headgate_gateway.http.schema FILE` writes that copy. May import the rest of this room and the dialects.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from headgate_dialects import kserve, openai_chat, openai_completions, openai_embeddings, scores

from headgate_gateway.domain import commands
from headgate_gateway.http import headers
from headgate_gateway.http.problems import TABLE

_BODIES: Final[dict[str, tuple[str, Any]]] = {
    "/v1/chat/completions": ("ChatRequest", openai_chat.ChatRequest),
    "/v1/completions": ("CompletionRequest", openai_completions.CompletionRequest),
    "/v1/embeddings": ("EmbeddingRequest", openai_embeddings.EmbeddingRequest),
    "/v1/rerank": ("RerankRequest", scores.RerankRequest),
    "/rerank": ("RerankRequest", scores.RerankRequest),
    "/v1/classify": ("ClassifyRequest", scores.ClassifyRequest),
    "/v2/models/{model_id}/infer": ("InferRequest", kserve.InferRequest),
    "/v2/models/{model_id}/versions/{version}/infer": ("InferRequest", kserve.InferRequest),
    "/admin/v1/keys": ("CreateKey", commands.CreateKey),
    "/admin/v1/budgets": ("SetBudget", commands.SetBudget),
    "/admin/v1/limits": ("SetLimit", commands.SetLimit),
    "/admin/v1/prices": ("SetPrice", commands.SetPrice),
    "/admin/v1/credits": ("GrantCredit", commands.GrantCredit),
}
"""POST routes and what their bodies are."""

_READS: Final[dict[str, str]] = {
    "/v1/models": "The models that this key may ask for",
    "/v1/models/{model_id}": "One model; an id with a slash is given plainly or with %2F",
    "/v1/usage": "Usage records, or totals with group_by",
    "/v1/usage/{request_id}": "One usage record",
    "/v1/limits": "The budgets and limits that this key is under",
    "/v2": "The server, as the Open Inference Protocol describes it",
    "/v2/models/{model_id}": "Metadata of a model",
    "/v2/models/{model_id}/ready": "Whether a model is ready, from its loop's heartbeat",
    "/v2/models/{model_id}/versions/{version}": "Metadata of a version of a model",
    "/v2/models/{model_id}/versions/{version}/ready": "Whether a version of a model is ready",
    "/v2/health/live": "Whether this worker answers",
    "/v2/health/ready": "Whether the gateway serves",
    "/health/live": "Whether this worker answers",
    "/health/ready": "Whether the gateway serves, and what every model is doing",
    "/metrics": "Prometheus metrics of all workers",
    "/schema": "This document",
    "/admin/v1/keys": "Keys",
    "/admin/v1/accounts": "Accounts of every kind",
    "/admin/v1/accounts/{account}": "One account, by id, or by the name of a project or organization",
    "/admin/v1/organizations": "Organizations",
    "/admin/v1/projects": "Projects",
    "/admin/v1/budgets": "Accounts with their budgets",
    "/admin/v1/limits": "Accounts with their limits",
    "/admin/v1/prices": "The price versions in force",
    "/admin/v1/models": "Configured models and their states",
    "/admin/v1/usage": "Usage records of everyone, or totals with group_by",
    "/admin/v1/audit": "Whether all balances re-derive from the records",
}

_OPEN: Final = ("/health", "/v2/health", "/schema")
"""Routes that ask for no key (so does `/v2` itself)."""


@cache
def openapi_bytes() -> bytes:
    """The document, as it is served and committed."""
    return msgspec.json.format(msgspec.json.encode(_document()), indent=2) + b"\n"


def _document() -> dict[str, Any]:
    schemas, components = msgspec.json.schema_components(
        [shape for _, shape in _BODIES.values()], ref_template="#/components/schemas/{name}"
    )
    names = _public_names(components)
    components = {names[name]: _tidy(component, names) for name, component in components.items()}
    bodies = dict(zip(_BODIES, _tidy(list(schemas), names), strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, summary in _READS.items():
        paths.setdefault(path, {})["get"] = _operation(path, summary)
    for path, (name, _) in _BODIES.items():
        operation = _operation(path, name)
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": bodies[path]}},
        }
        paths.setdefault(path, {})["post"] = operation
    paths["/admin/v1/keys/{key_id}"] = {
        "delete": _operation("/admin/v1/keys/{key_id}", "Revoke a key; returns when every worker knows")
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headgate",
            "version": headers.RELEASE,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _problem()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
                "x-goog-api-key": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
            },
        },
        "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {"x-goog-api-key": []}],
    }


def _public_names(components: dict[str, Any]) -> dict[str, str]:
    """Names of our private structs as people should see them; namesakes get their module before it."""
    found: dict[str, str] = {}
    for name in components:
        module, _, struct = name.rpartition(".")
        public = struct.lstrip("_")
        found[name] = public if not module else f"{module.rpartition('.')[2].title().replace('_', '')}{public}"
    return found


def _tidy(value: Any, names: dict[str, str]) -> Any:
    """References under their public names; defaults that are sets in an order that does not change."""
    if isinstance(value, list | tuple):
        return [_tidy(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    tidied: dict[str, Any] = {}
    for name, item in value.items():
        if name == "$ref":
            head, _, struct = item.rpartition("/")
            tidied[name] = f"{head}/{names[struct]}"
        elif name == "mapping":
            tidied[name] = {tag: _tidy({"$ref": ref}, names)["$ref"] for tag, ref in item.items()}
        elif name == "title" and isinstance(item, str):
            tidied[name] = item.lstrip("_")
        elif name == "default" and isinstance(item, list):
            tidied[name] = sorted(item)
        else:
            tidied[name] = _tidy(item, names)
    return tidied


def _operation(path: str, summary: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer"},
            "default": {
                "description": "What went wrong",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    parameters = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if path.startswith(_OPEN) or path == "/v2":
        operation["security"] = []
    return operation


def _problem() -> dict[str, Any]:
    """Problem members of RFC 9457, ours, and the `error` of the dialect that was asked in."""
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "instance", "code", "error"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {"type": "string", "description": "The request id"},
            "code": {"type": "string", "enum": list(TABLE)},
            "path": {"type": "string", "description": "The field at fault"},
            "retry_after_ms": {"type": "integer"},
            "error": {"description": "An object under /v1, a text under /v2"},
        },
    }


def main(words: list[str]) -> int:
    """Write the description to a file, or with `--check` say whether the file is what would be written."""
    *flags, file = words
    if flags != ["--check"]:
        Path(file).write_bytes(openapi_bytes())
        return 0
    if Path(file).read_bytes() == openapi_bytes():
        return 0
    sys.stderr.write(f"{file} is not what the code describes; run `make gen`\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
