"""The API's description (OpenAPI 3.1), made from structs of requests and answers. `docs/openapi.json` is a copy.

`python -m headgate_gateway.http.schema FILE` writes that copy. May import the rest of this room, admin and the
dialects.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from headgate_dialects import kserve, openai_chat, openai_completions, openai_embeddings, openai_responses, scores
from headgate_plugin_api import JsonValue

from headgate_gateway.admin.consumers import ResetConsumer
from headgate_gateway.admin.erasing import EraseTags
from headgate_gateway.domain import commands
from headgate_gateway.http import answers, book_answers, headers
from headgate_gateway.http.problems import CREATED, OK, SERVICE_UNAVAILABLE, TABLE
from headgate_gateway.http.quote_routes import Quote

_BODIES: Final[dict[str, tuple[str, Any]]] = {
    "/v1/chat/completions": ("ChatRequest", openai_chat.ChatRequest),
    "/v1/completions": ("CompletionRequest", openai_completions.CompletionRequest),
    "/v1/responses": ("ResponseRequest", openai_responses.ResponseRequest),
    "/v1/embeddings": ("EmbeddingRequest", openai_embeddings.EmbeddingRequest),
    "/v1/rerank": ("RerankRequest", scores.RerankRequest),
    "/rerank": ("RerankRequest", scores.RerankRequest),
    "/v1/classify": ("ClassifyRequest", scores.ClassifyRequest),
    "/v2/models/{model_id}/infer": ("InferRequest", kserve.InferRequest),
    "/v2/models/{model_id}/versions/{version}/infer": ("InferRequest", kserve.InferRequest),
    "/admin/v1/keys": ("CreateKey", commands.CreateKey),
    "/admin/v1/keys/{key_id}/rotate": ("RotateKey", commands.Overlap),
    "/admin/v1/organizations": ("CreateOrganization", commands.OrganizationFields),
    "/admin/v1/projects": ("CreateProject", commands.ProjectFields),
    "/admin/v1/budgets": ("SetBudget", commands.SetBudget),
    "/admin/v1/limits": ("SetLimit", commands.SetLimit),
    "/admin/v1/prices": ("SetPrice", commands.SetPrice),
    "/admin/v1/credits": ("GrantCredit", commands.GrantCredit),
    "/admin/v1/tags/erase": ("EraseTags", EraseTags),
    "/admin/v1/consumers/{consumer}/reset": ("ResetConsumer", ResetConsumer),
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
    "/admin/v1/prices": "The price versions in force and to come",
    "/admin/v1/credits": "Grants of prepaid credit; limit counts the accounts that are looked at",
    "/admin/v1/models": "Configured models and their states",
    "/admin/v1/usage": "Usage records of everyone, or totals with group_by",
    "/admin/v1/consumers": "Plugins that take usage records, and how far they have come",
    "/admin/v1/log": "What operators, configs and the ledger itself did: the audit log, oldest first",
    "/admin/v1/audit": "Whether all balances re-derive from the records",
}

_MADE: Final = ((book_answers.KeyCreated,), (book_answers.Account,))
"""What is answered to those who made it."""

_DELETES: Final[dict[str, str]] = {
    "/admin/v1/consumers/{consumer}": "Forget how far a consumer has come",
    "/admin/v1/keys/{key_id}": "Revoke a key; returns when every worker knows",
    "/admin/v1/prices/{price_id}": "Let a planned price not begin: one more version says what will be in force",
}

_ACTIONS: Final[dict[str, str]] = {
    "/admin/v1/models/{model_id}/load": "Start the engines of a local model; answers when it is ready",
    "/admin/v1/models/{model_id}/unload": "End the engines of a local model, until it or the config is loaded",
}
"""POST routes without a body."""

ANSWERS: Final[dict[tuple[str, str], tuple[Any, ...]]] = {
    ("post", "/v1/chat/completions"): (answers.ChatCompletion,),
    ("post", "/v1/completions"): (answers.TextCompletion,),
    ("post", "/v1/responses"): (answers.Response,),
    ("post", "/v1/embeddings"): (answers.EmbeddingList,),
    ("post", "/v1/rerank"): (answers.RerankAnswer,),
    ("post", "/rerank"): (answers.RerankAnswer,),
    ("post", "/v1/classify"): (answers.ClassifyAnswer,),
    ("post", "/v1/quotes"): (Quote,),
    ("post", "/v2/models/{model_id}/infer"): (answers.InferAnswer,),
    ("post", "/v2/models/{model_id}/versions/{version}/infer"): (answers.InferAnswer,),
    ("post", "/admin/v1/keys"): (book_answers.KeyCreated,),
    ("post", "/admin/v1/keys/{key_id}/rotate"): (book_answers.KeyCreated,),
    ("post", "/admin/v1/organizations"): (book_answers.Account,),
    ("post", "/admin/v1/projects"): (book_answers.Account,),
    ("post", "/admin/v1/budgets"): (book_answers.Done,),
    ("post", "/admin/v1/limits"): (book_answers.Done,),
    ("post", "/admin/v1/prices"): (book_answers.PricesSet,),
    ("post", "/admin/v1/credits"): (book_answers.Done,),
    ("post", "/admin/v1/tags/erase"): (book_answers.TagsErased,),
    ("delete", "/admin/v1/keys/{key_id}"): (book_answers.Done,),
    ("delete", "/admin/v1/prices/{price_id}"): (book_answers.PricesSet,),
    ("get", "/v1/models"): (answers.ModelList,),
    ("get", "/v1/models/{model_id}"): (answers.ModelCard,),
    ("get", "/v1/usage"): (book_answers.UsageRecords, book_answers.UsageTotals),
    ("get", "/v1/usage/{request_id}"): (book_answers.UsageRecord,),
    ("get", "/v1/limits"): (book_answers.AccountLimits,),
    ("get", "/v2"): (answers.ServerMetadata,),
    ("get", "/v2/models/{model_id}"): (answers.ModelMetadata,),
    ("get", "/v2/models/{model_id}/ready"): (answers.ModelReadiness,),
    ("get", "/v2/models/{model_id}/versions/{version}"): (answers.ModelMetadata,),
    ("get", "/v2/models/{model_id}/versions/{version}/ready"): (answers.ModelReadiness,),
    ("get", "/health/ready"): (answers.Readiness,),
    ("get", "/admin/v1/keys"): (book_answers.KeyList,),
    ("get", "/admin/v1/accounts"): (book_answers.AccountList,),
    ("get", "/admin/v1/accounts/{account}"): (book_answers.Account,),
    ("get", "/admin/v1/organizations"): (book_answers.AccountList,),
    ("get", "/admin/v1/projects"): (book_answers.AccountList,),
    ("get", "/admin/v1/budgets"): (book_answers.AccountList,),
    ("get", "/admin/v1/limits"): (book_answers.AccountList,),
    ("get", "/admin/v1/prices"): (book_answers.PriceList,),
    ("get", "/admin/v1/credits"): (book_answers.CreditList,),
    ("get", "/admin/v1/models"): (answers.ModelStates,),
    ("post", "/admin/v1/models/{model_id}/load"): (answers.ModelControlled,),
    ("post", "/admin/v1/models/{model_id}/unload"): (answers.ModelControlled,),
    ("get", "/admin/v1/usage"): (book_answers.UsageRecords, book_answers.UsageTotals),
    ("get", "/admin/v1/consumers"): (book_answers.ConsumerList,),
    ("post", "/admin/v1/consumers/{consumer}/reset"): (book_answers.Done,),
    ("delete", "/admin/v1/consumers/{consumer}"): (book_answers.Done,),
    ("get", "/admin/v1/log"): (book_answers.LogPage,),
    ("get", "/admin/v1/audit"): (book_answers.AuditReport,),
}
"""What a route answers: one of these. Routes that are missing here answer with text or with a sign of life."""

EVENTS: Final[dict[str, Any]] = {
    "/v1/chat/completions": answers.ChatCompletionChunk,
    "/v1/completions": answers.TextCompletion,
    "/v1/responses": answers.ResponseEvent,
}
"""What the events of a stream are."""

_PAGES: Final = ("after", "limit")
_USAGE: Final = (
    "since",
    "until",
    "group_by",
    "bucket",
    *_PAGES,
    "model",
    "key",
    "project",
    "organization",
    "backend",
    "outcome",
)
_QUERIES: Final[dict[str, tuple[str, ...]]] = {
    "/v1/usage": _USAGE,
    "/admin/v1/usage": _USAGE,
    "/admin/v1/keys": ("project", *_PAGES),
    "/admin/v1/accounts": _PAGES,
    "/admin/v1/organizations": _PAGES,
    "/admin/v1/projects": _PAGES,
    "/admin/v1/budgets": _PAGES,
    "/admin/v1/limits": _PAGES,
    "/admin/v1/credits": _PAGES,
    "/admin/v1/prices": ("model", "history", *_PAGES),
    "/admin/v1/log": _PAGES,
    "/admin/v1/audit": ("full",),
}
"""Query parameters of GET routes."""

_ASKING: Final = ("idempotency-key", "headgate-tags", "headgate-deadline-ms", "headgate-attempt")
_RESUMING: Final = ("headgate-resumable", "last-event-id")
"""Headers that a model call may carry, and besides them one for a stream."""

_MOMENT: Final = {
    "type": ["integer", "string"],
    "description": "Microseconds UTC, or a time of RFC 3339: 2026-08-01T00:00:00Z for example",
}
"""What `commands.Moment` is in a document."""

_OPEN: Final = ("/health", "/v2/health", "/schema")
"""Routes that ask for no key (so does `/v2` itself)."""


@cache
def openapi_bytes() -> bytes:
    """The document, as it is served and committed."""
    return msgspec.json.format(msgspec.json.encode(_document()), indent=2) + b"\n"


def _document() -> dict[str, Any]:
    shapes = [
        *(shape for _, shape in _BODIES.values()),
        *(shape for kinds in ANSWERS.values() for shape in kinds),
        *EVENTS.values(),
    ]
    schemas, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    names = _public_names(components)
    components = {names[name]: _tidy(component, names) for name, component in components.items()}
    found = dict(zip(shapes, _tidy(list(schemas), names), strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, summary in _READS.items():
        paths.setdefault(path, {})["get"] = _operation("get", path, summary, found)
    for path, (name, shape) in _BODIES.items():
        operation = _operation("post", path, name, found)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": found[shape]}}}
        paths.setdefault(path, {})["post"] = operation
    for path, summary in _ACTIONS.items():
        paths[path] = {"post": _operation("post", path, summary, found)}
    paths["/v1/quotes"] = {"post": _quotes(found)}
    for path, summary in _DELETES.items():
        paths[path] = {"delete": _operation("delete", path, summary, found)}
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


def _quotes(found: dict[Any, Any]) -> dict[str, Any]:
    """A quote's body is that of the request that it is about."""
    kinds = {shape: None for path, (_, shape) in _BODIES.items() if not path.startswith("/admin")}
    operation = _operation("post", "/v1/quotes", "What a request can consume and cost at most", found)
    schema = {"anyOf": [found[shape] for shape in kinds]}
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _public_names(components: dict[str, Any]) -> dict[str, str]:
    """Names of our private structs as people should see them; namesakes get their module before it."""
    found: dict[str, str] = {}
    for name in components:
        module, _, struct = name.rpartition(".")
        public = struct.lstrip("_")
        found[name] = public if not module else f"{module.rpartition('.')[2].title().replace('_', '')}{public}"
    return found


def _tidy(value: JsonValue | tuple[JsonValue, ...], names: dict[str, str]) -> Any:
    """References under their public names, times as they are taken, sets in an order that does not change."""
    if isinstance(value, list | tuple):
        return [_tidy(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("format") == "moment":
        return dict(_MOMENT)
    tidied: dict[str, Any] = {}
    for name, item in value.items():
        if name == "$ref" and isinstance(item, str):
            head, _, struct = item.rpartition("/")
            tidied[name] = f"{head}/{names[struct]}"
        elif name == "mapping" and isinstance(item, dict):
            tidied[name] = {tag: _tidy({"$ref": ref}, names)["$ref"] for tag, ref in item.items()}
        elif name == "title" and isinstance(item, str):
            tidied[name] = item.lstrip("_")
        elif name == "additionalProperties" and item is False:
            continue  # what an answer gains later must not break who was made from this
        elif name == "default" and isinstance(item, list):
            tidied[name] = sorted(item, key=str)
        else:
            tidied[name] = _tidy(item, names)
    return tidied


def _operation(method: str, path: str, summary: str, found: dict[Any, Any]) -> dict[str, Any]:
    kinds = ANSWERS.get((method, path))
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            str(CREATED if method == "post" and kinds in _MADE else OK): _answer(method, path, found),
            "default": {
                "description": "What went wrong",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if path.endswith("/ready"):  # not ready is an answer as well
        problem = operation["responses"]["default"]["content"]
        facts = operation["responses"][str(OK)].get("content", {})
        operation["responses"][str(SERVICE_UNAVAILABLE)] = {
            "description": "Not ready", "content": {**facts, **problem},
        }  # fmt: skip
    if parameters := _parameters(method, path):
        operation["parameters"] = parameters
    if path.startswith(_OPEN) or path == "/v2":
        operation["security"] = []
    return operation


def _answer(method: str, path: str, found: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer"}
    kinds = [found[shape] for shape in ANSWERS.get((method, path), ())]
    if kinds:
        schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        answer["content"] = {"application/json": {"schema": schema}}
    if method == "post" and path in EVENTS:
        answer["content"]["text/event-stream"] = {"schema": found[EVENTS[path]]}
    return answer


def _parameters(method: str, path: str) -> list[dict[str, Any]]:
    """What stands in a path, in its query string, and in the headers of a model call."""
    text = {"type": "string"}
    found: list[dict[str, Any]] = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": text}
        for part in path.split("/")
        if part.startswith("{")
    ]
    if method == "get":
        found += [{"name": name, "in": "query", "schema": text} for name in _QUERIES.get(path, ())]
    if method == "post" and path in _BODIES and not path.startswith("/admin"):
        names = (*_ASKING, *(_RESUMING if path in EVENTS else ()))
        found += [{"name": name, "in": "header", "schema": text} for name in names]
    return found


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
