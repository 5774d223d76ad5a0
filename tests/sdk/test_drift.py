"""The client's types against the API's committed description: neither half moves without the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Required, get_args, get_origin, get_type_hints

import pytest
from headgate.types import (
    admin,
    chat,
    completions,
    embeddings,
    infer,
    limits,
    models,
    quotes,
    rerank,
    responses,
    shared,
    usage,
)
from pydantic import BaseModel

DESCRIPTION = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
SCHEMAS: dict[str, Any] = DESCRIPTION["components"]["schemas"]

ANSWERS: dict[str, type[BaseModel]] = {
    "ChatCompletion": chat.ChatCompletion,
    "ChatCompletionChunk": chat.ChatCompletionChunk,
    "TextCompletion": completions.Completion,
    "Response": responses.Response,
    "ResponseEvent": responses.ResponseEvent,
    "EmbeddingList": embeddings.EmbeddingsResponse,
    "RerankAnswer": rerank.RerankResponse,
    "ClassifyAnswer": rerank.ClassifyResponse,
    "InferAnswer": infer.InferResponse,
    "ModelCard": models.Model,
    "ModelList": models.ModelList,
    "Quote": quotes.Quote,
    "UsageRecord": usage.UsageRecord,
    "UsageTotal": usage.UsageRow,
    "UsageTotals": usage.UsageReport,
    "UsageRecords": usage.UsageReport,
    "AccountLimits": limits.AccountLimits,
    "KeyCreated": admin.KeyCreated,
    "Key": admin.KeyInfo,
    "Account": admin.AccountInfo,
    "Budget": admin.BudgetInfo,
    "Credit": admin.CreditInfo,
    "CreditList": admin.PageDocument,
    "Done": admin.Done,
    "PriceVersion": admin.PriceInfo,
    "PriceListed": admin.PriceInfo,
    "PricesSet": admin.PricesSet,
    "TagsErased": admin.TagsErased,
    "LogEntry": admin.LogEntry,
    "LogPage": admin.PageDocument,
    "Consumer": admin.ConsumerInfo,
    "ConsumerList": admin.PageDocument,
    "ModelState": admin.ModelState,
    "ConfiguredModel": admin.ModelState,
    "ModelStates": admin.PageDocument,
    "ModelControlled": admin.ModelState,
    "KeyList": admin.PageDocument,
    "AccountList": admin.PageDocument,
    "PriceList": admin.PageDocument,
}

PARAMETERS: dict[str, Any] = {
    "ChatRequest": chat.ChatFields,
    "CompletionRequest": completions.CompletionFields,
    "ResponseRequest": responses.ResponseFields,
    "EmbeddingRequest": embeddings.EmbeddingFields,
    "RerankRequest": rerank.RerankParams,
    "ClassifyRequest": rerank.ClassifyParams,
    "CreateKey": admin.KeyFields,
}

SET_BY_THE_CLIENT = {"stream", "top_k"}
"""`stream` is a matter of the method. `top_k` is no parameter of OpenAI's chat: `extra_body` takes it."""


DIGITS = "1234" * 4
"""A text that is a number and base64 of three floats as well."""

UNNAMED = {"object", "created", "overrun", "held", "seq"}
"""What only says which document it is, and what only operators are shown."""


def samples(schema: Mapping[str, Any], depth: int = 0) -> Iterator[Any]:
    """Documents that a schema allows: every alternative of every member once, absent members included."""
    if "$ref" in schema:
        yield from samples(SCHEMAS[schema["$ref"].rpartition("/")[2]], depth)
    elif "anyOf" in schema:
        for alternative in schema["anyOf"]:
            yield from samples(alternative, depth)
    elif "enum" in schema:
        yield from schema["enum"]
    elif schema.get("type") == "object" and "properties" in schema:
        yield from _objects(schema, depth)
    elif schema.get("type") == "object":
        of = schema.get("additionalProperties", {})
        yield {}
        yield {"name": next(samples(of, depth + 1))}
    elif schema.get("type") == "array":
        yield []
        yield list(samples(schema.get("items", {}), depth + 1))[:20]
    else:
        kinds = {"string": DIGITS, "integer": 1, "number": 0.5, "boolean": True, "null": None}
        yield kinds.get(schema.get("type", "string"), DIGITS)


def _objects(schema: Mapping[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    members = {name: list(samples(member, depth + 1)) for name, member in schema["properties"].items()}
    required = set(schema.get("required", ()))
    full = {name: values[0] for name, values in members.items()}
    yield full
    yield {name: value for name, value in full.items() if name in required}
    for name, values in members.items():
        for value in values[1:]:
            yield {**full, name: value}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_client_reads_whatever_the_gateway_may_answer(name: str) -> None:
    for document in samples(SCHEMAS[name]):
        if name == "InferAnswer":
            document["outputs"] = []  # tensors are read with their shapes: test_tensors
        ANSWERS[name].model_validate(document)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_client_names_what_the_gateway_answers(name: str) -> None:
    model = ANSWERS[name]
    ours = {field.alias or key for key, field in model.model_fields.items()}
    ours |= {key for kind in model.__mro__ for key in vars(kind) if isinstance(vars(kind)[key], property)}
    theirs = set(SCHEMAS[name]["properties"])
    assert theirs - ours <= UNNAMED, "members that the client does not name"


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_client_can_ask_whatever_the_gateway_reads(name: str) -> None:
    schema, params = SCHEMAS[name], PARAMETERS[name]
    assert set(schema["properties"]) - set(params.__annotations__) <= SET_BY_THE_CLIENT
    hints = get_type_hints(params, include_extras=True)
    assert set(schema.get("required", ())) == {key for key, hint in hints.items() if get_origin(hint) is Required}


def test_usage_filters_and_groups_are_the_gateways() -> None:
    parameters = DESCRIPTION["paths"]["/v1/usage"]["get"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == set(usage.UsageQuery.__annotations__)
    assert set(get_args(usage.UsageGroup)) <= set(SCHEMAS["UsageTotal"]["properties"])


def test_every_header_that_the_client_sends_is_described() -> None:
    parameters = DESCRIPTION["paths"]["/v1/chat/completions"]["post"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == {
        "idempotency-key", "headgate-tags", "headgate-deadline-ms", "headgate-attempt", "headgate-resumable",
        "last-event-id",
    }  # fmt: skip
    assert shared.OPTION_NAMES
