"""Every resource, in both colours, against the fake gateway: what goes out and what comes back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from headgate import Headgate, errors
from headgate.testing import FakeGateway, FakeModel
from pydantic import BaseModel

from .conftest import HELLO, Driver, say


class Point(BaseModel):
    x: int
    y: int


async def test_chat_takes_what_openai_takes(drive: Driver) -> None:
    client = drive.client()
    answer = await drive.do(
        client.chat.completions.create,
        model="echo",
        messages=HELLO,
        n=2,
        max_tokens=2,
        temperature=0.5,
        stop=None,
        tools=[{"type": "function", "function": {"name": "f"}}],
        extra_body={"future": 1},
        extra_headers={"X-Mine": "yes"},
    )
    assert [choice.message.content for choice in answer.choices] == ["hello brave"] * 2
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == 4
    assert answer.usage.completion_tokens == 4
    sent = drive.gateway.seen[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["x-mine"] == "yes"
    assert sent.headers["authorization"] == "Bearer hg_fake"
    body = sent.json()
    assert "stop" not in body
    assert body["future"] == 1
    assert body["n"] == 2


async def test_history_may_hold_answers(drive: Driver) -> None:
    client = drive.client()
    first = await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    messages: list[Any] = [*HELLO, first.choices[0].message, *say("more")]
    await drive.do(client.chat.completions.create, model="echo", messages=messages)
    sent = drive.gateway.seen[1].json()["messages"]
    assert sent[1] == {"role": "assistant", "content": "hello brave new world"}


async def test_a_misspelt_parameter_names_the_right_one(drive: Driver) -> None:
    client = drive.client()
    with pytest.raises(TypeError, match="'max_token'; did you mean 'max_tokens'"):
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO, max_token=1)
    with pytest.raises(TypeError, match="extra_body takes fields"):
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO, zzzzzz=1)
    with pytest.raises(TypeError, match="'messages' is missing"):
        await drive.do(client.chat.completions.create, model="echo")
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO, user=object())
    assert not drive.gateway.seen


async def test_parse_gives_your_type() -> None:
    gateway = FakeGateway({"echo": FakeModel(answer=lambda _: '{"x": 1, "y": 2}')})
    for colour in ("sync", "async"):
        drive = Driver(colour, gateway)
        answer = await drive.do(
            drive.client().chat.completions.parse, model="echo", messages=HELLO, response_format=Point, n=2
        )
        assert answer.parsed == Point(x=1, y=2)
        assert [choice.message.parsed for choice in answer.choices] == [Point(x=1, y=2)] * 2
        schema = gateway.seen[-1].json()["response_format"]
        assert schema["json_schema"]["name"] == "Point"
        assert schema["json_schema"]["schema"]["required"] == ["x", "y"]


async def test_parse_names_where_the_text_is_wrong() -> None:
    gateway = FakeGateway({"echo": FakeModel(answer=lambda _: '{"x": 1, "y": "no"}')})
    drive = Driver("async", gateway)
    with pytest.raises(errors.ResponseShapeError) as caught:
        await drive.do(drive.client().chat.completions.parse, model="echo", messages=HELLO, response_format=Point)
    assert caught.value.path == "y"
    assert caught.value.usage is not None
    assert str(caught.value.cost) == "0.000012"


async def test_create_with_stream_is_a_stream(drive: Driver) -> None:
    stream = await drive.do(drive.client().chat.completions.create, model="echo", messages=HELLO, stream=True)
    chunks = await drive.list(stream)
    # Bookkeeping stays out of the way: every chunk has a choice, as with openai.
    assert all(chunk.choices for chunk in chunks)
    assert stream.usage.total_tokens == 8
    assert drive.gateway.seen[0].json()["stream_options"] == {"include_usage": True}


async def test_usage_chunks_are_shown_to_who_asks(drive: Driver) -> None:
    create = drive.client().chat.completions.create
    options = {"include_usage": True}
    stream = await drive.do(create, model="echo", messages=HELLO, stream=True, stream_options=options)
    assert (await drive.list(stream))[-1].usage.total_tokens == 8


async def test_leaving_a_stream_early_closes_it(drive: Driver) -> None:
    client = drive.client()
    with client.meter() as meter:
        async with drive.within(client.chat.completions.stream(model="echo", messages=HELLO)) as stream:
            async for _ in drive.each(stream):
                break
            assert client._engine.transport.open_streams
    assert not client._engine.transport.open_streams
    assert meter.rows()[0].unpriced == 1
    assert await drive.list(stream) == []
    await drive.do(stream.close)


async def test_completions(drive: Driver) -> None:
    client = drive.client()
    answer = await drive.do(client.completions.create, model="echo", prompt="one two")
    assert answer.text == "one two"
    stream = await drive.do(client.completions.create, model="echo", prompt="one two", stream=True)
    assert (await drive.do(stream.final)).text == "one two"
    async with drive.within(client.completions.stream(model="echo", prompt="a b")) as stream:
        assert await drive.list(stream.text) == ["a", " b"]


async def test_responses(drive: Driver) -> None:
    client = drive.client()
    answer = await drive.do(client.responses.create, model="echo", input="one two three", max_output_tokens=2)
    assert answer.output_text == "one two"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2)
    async with drive.within(client.responses.stream(model="echo", input="one two")) as stream:
        assert await drive.list(stream.text) == ["one", " two"]
    final = await drive.do(stream.final)
    assert final.output_text == "one two"
    assert str(stream.cost) == "0.000006"
    assert "stream_options" not in drive.gateway.seen[-1].json()
    stream = await drive.do(client.responses.create, model="echo", input="x", stream=True)
    assert [event.type for event in await drive.list(stream)] == [
        "response.output_text.delta",
        "response.completed",
    ]


async def test_embeddings_of_any_length(drive: Driver) -> None:
    client = drive.client()
    texts = [f"text {n}" for n in range(1000)]
    answer = await drive.do(client.embeddings.create, model="embed", input=texts, batch_size=300)
    assert [seen.json()["input"][0] for seen in drive.gateway.seen] == [
        "text 0",
        "text 300",
        "text 600",
        "text 900",
    ]
    assert [item.index for item in answer.data] == list(range(1000))
    assert answer.usage.prompt_tokens == 2000
    assert answer.cost.nano == drive.gateway.spent
    single = await drive.do(client.embeddings.create, model="embed", input="text 999")
    assert single.data[0].embedding == answer.data[999].embedding
    array = answer.numpy()
    assert array.shape == (1000, 8)
    assert array.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, rtol=1e-5)
    assert drive.gateway.seen[0].json()["encoding_format"] == "base64"
    plain = await drive.do(client.embeddings.create, model="embed", input="text 999", encoding_format="float")
    assert plain.vectors == single.vectors


async def test_token_ids_are_one_text(drive: Driver) -> None:
    answer = await drive.do(drive.client().embeddings.create, model="embed", input=[[1, 2], [3]], batch_size=1)
    assert len(answer.data) == 2
    await drive.do(drive.client().embeddings.create, model="embed", input=[1, 2, 3], batch_size=1)
    assert drive.gateway.seen[-1].json()["input"] == [1, 2, 3]


async def test_a_failed_part_fails_the_call(drive: Driver) -> None:
    client = drive.client(max_retries=0)
    with pytest.raises(errors.NotFound):
        await drive.do(client.embeddings.create, model="nope", input=["a", "b"], batch_size=1)
    with pytest.raises(ValueError, match="batch_size"):
        await drive.do(client.embeddings.create, model="embed", input=["a"], batch_size=0)


async def test_your_own_key_is_one_key_per_part(drive: Driver) -> None:
    create = drive.client().embeddings.create
    await drive.do(create, model="embed", input=["a", "b"], batch_size=1, idempotency_key="mine")
    keys = [seen.headers["idempotency-key"] for seen in drive.gateway.seen]
    assert keys == ["mine-0", "mine-1"]


@pytest.mark.parametrize("binary", [False, True])
async def test_infer(drive: Driver, binary: bool) -> None:
    client = drive.client()
    answer = await drive.do(
        client.infer.create,
        model="double",
        inputs={
            "a": np.array([[1, 2], [3, 4]], dtype=np.float32),
            "b": [1, 2, 3],
            "c": {"data": [0.5], "datatype": "FP64"},
            "d": ["text", "ä"],
        },
        outputs=["a", "b", "c", "d"],
        binary=binary,
    )
    np.testing.assert_array_equal(answer["a"].numpy(), np.array([[2, 4], [6, 8]], dtype=np.float32))
    assert answer["b"].tolist() == [2, 4, 6]
    assert answer["b"].datatype == "INT64"
    assert answer["c"].numpy().dtype == np.float64
    expected: list[Any] = [b"text", "ä".encode()] if binary else ["text", "ä"]
    assert answer["d"].tolist() == expected
    assert set(answer.numpy()) == {"a", "b", "c", "d"}
    assert str(answer.cost) == "0.000001"
    with pytest.raises(KeyError, match="the outputs are"):
        answer["nope"]
    sent = drive.gateway.seen[0]
    assert sent.path == "/v2/models/double/infer"
    assert ("inference-header-content-length" in sent.headers) is binary


async def test_infer_versions_and_slashes(drive: Driver) -> None:
    drive.gateway.models["org/double"] = FakeModel("infer", {})
    answer = await drive.do(
        drive.client().infer.create,
        model="org/double",
        inputs={"x": [1]},
        version="3",
        id="mine",
        parameters={"p": 1},
    )
    assert answer.id == "mine"
    assert drive.gateway.seen[0].path == "/v2/models/org/double/versions/3/infer"


async def test_rerank_and_classify(drive: Driver) -> None:
    client = drive.client()
    ranked = await drive.do(
        client.rerank.create,
        model="rerank",
        query="cat dog",
        documents=["a dog", {"text": "a cat and a dog"}, "x"],
        top_n=2,
        return_documents=True,
    )
    assert [result.index for result in ranked.results] == [1, 0]
    assert ranked.results[0].document["text"] == "a cat and a dog"
    labelled = await drive.do(client.classify.create, model="classify", input=["one", "one two three four five"])
    assert [item.label for item in labelled.data] == ["short", "long"]
    assert labelled.data[0].scores[0].score == 0.9


async def test_models_limits_and_quotes(drive: Driver) -> None:
    client = drive.client()
    models = await drive.do(client.models.list)
    assert [model.id for model in models] == sorted(drive.gateway.models)
    assert len(models) == 5
    assert (await drive.do(client.models.retrieve, "echo")).task == "chat"
    with pytest.raises(errors.NotFound):
        await drive.do(client.models.retrieve, "a/b")
    assert (await drive.do(client.limits.retrieve)).budgets == []
    quote = await drive.do(client.quotes.create, model="echo", messages=HELLO, max_tokens=10)
    assert str(quote.most) == "0.000024"
    array = np.zeros((2, 2), dtype=np.float32)
    quote = await drive.do(client.quotes.create, model="double", inputs={"x": array}, binary=True)
    assert str(quote.most) == "0.000001"
    sent = drive.gateway.seen[-1].json()
    assert (sent["model"], sent["inputs"][0]["data"]) == ("double", [0.0] * 4)
    assert not drive.gateway.records


async def test_usage_is_queried_page_by_page(drive: Driver) -> None:
    client = drive.client()
    for n in range(7):
        await drive.do(client.chat.completions.create, model="echo", messages=say("x " * (n + 1)))
    rows = await drive.do(client.usage.records, limit=3)
    assert len(rows) == 7
    assert sum(row.amount.nano for row in rows) == drive.gateway.spent
    totals = await drive.do(client.usage.query, group_by="model")
    assert totals.data[0].requests == 7
    both = await drive.do(client.usage.query, group_by=["model", "outcome"])
    assert [(row.model, row.outcome, row.requests) for row in both] == [("echo", both.data[0].outcome, 7)]
    record = await drive.do(client.usage.retrieve, rows[0].request_id)
    assert record.amount == rows[0].amount
    with pytest.raises(errors.NotFound):
        await drive.do(client.usage.retrieve, "req_nope")


async def test_reconcile_finds_every_difference(drive: Driver) -> None:
    client = drive.client()
    began = datetime(2025, 12, 31, tzinfo=UTC)
    for _ in range(3):
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert (await drive.do(client.usage.reconcile, began)).ok
    # Somebody else with the same key, a record that changed, a record that vanished.
    await drive.do(drive.client().chat.completions.create, model="echo", messages=HELLO)
    records = drive.gateway.records
    records[0]["cost"] = "0.5"
    lost = records.pop(1)
    found = await drive.do(client.usage.reconcile, began)
    assert not found.ok
    assert [item.request_id for item in found.differing] == [records[0]["request_id"]]
    assert [item.request_id for item in found.missing_there] == [lost["request_id"]]
    assert len(found.missing_here) == 1
    assert found.matched == 1


async def test_admin(drive: Driver) -> None:
    admin = drive.client().admin
    made = await drive.do(admin.keys.create, project="web", budget="1.00/month", rpm=60)
    assert made.key.startswith("hg_")
    expires = datetime(2027, 1, 1, tzinfo=UTC)
    for n in range(4):
        await drive.do(admin.keys.create, project="web", name=f"k{n}", expires_at=expires)
    assert drive.gateway.operator.commands[-1][1]["expires_at"] == int(expires.timestamp() * 1e6)
    page = await drive.do(admin.keys.list, project="web", limit=2)
    assert page.has_next_page
    assert len(page.data) == 2
    assert len(await drive.list(page)) == 5
    last = await drive.do((await drive.do(page.next_page)).next_page)
    assert not last.has_next_page
    with pytest.raises(ValueError, match="last page"):
        await drive.do(last.next_page)
    assert (await drive.do(admin.keys.revoke, made.id)).changed
    assert not (await drive.do(admin.keys.revoke, made.id)).changed
    await drive.do(admin.keys.rotate, made.id, overlap_s=60)
    assert [item.name for item in (await drive.do(admin.projects.list)).data] == ["web"]
    assert len((await drive.do(admin.organizations.list)).data) == 1
    await drive.do(admin.budgets.set, "web", "5", window="day")
    await drive.do(admin.limits.set, "web", "requests", 10)
    assert (await drive.do(admin.prices.set, "echo", {"input": "1"})).versions
    await drive.do(admin.credits.grant, "web", "10", note="thanks")
    for absent in (admin.consumers.list, admin.models.list, admin.log.list):
        with pytest.raises(errors.NotFound, match="the fake gateway has no /admin/v1/"):
            await drive.do(absent)
    with pytest.raises(ValueError, match="key_id: empty"):
        await drive.do(admin.keys.revoke, "")
    routes = [route for route, _ in drive.gateway.operator.commands[-4:]]
    assert routes == [f"/admin/v1/{name}" for name in ("budgets", "limits", "prices", "credits")]


async def test_with_options_shares_the_connections(drive: Driver) -> None:
    client = drive.client(tags={"app": "a"})
    copy = client.with_options(
        max_retries=0, timeout=5, default_headers={"X-A": "1"}, tags={"team": "b"}, api_key="hg_other"
    )
    await drive.do(copy.chat.completions.create, model="echo", messages=HELLO)
    sent = drive.gateway.seen[0]
    assert sent.headers["x-a"] == "1"
    assert sent.headers["authorization"] == "Bearer hg_other"
    assert drive.gateway.records[0]["tags"] == {"app": "a", "team": "b"}
    assert sent.headers["headgate-deadline-ms"] == "5000"
    await drive.do(copy.close)
    await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    await drive.do(client.close)
    with pytest.raises(errors.ConnectionFailed, match="closed"):
        await drive.do(client.with_options(max_retries=0).models.list)


async def test_limits_of_an_answer(drive: Driver) -> None:
    client = drive.client()
    answer = await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert answer.limits == {}
    answer.raw.headers.update(
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
        }
    )
    assert answer.limits["requests"].remaining == 59
    assert answer.backend == "fake"
    assert answer.fingerprint is None


def test_unknown_members_are_kept() -> None:
    client = FakeGateway().client()
    answer = client.chat.completions.create(model="echo", messages=HELLO)  # type: ignore[arg-type]
    dumped = answer.model_dump()
    assert json.dumps(dumped)
    assert dumped["usage"]["cost"] == "0.000012"


def test_a_client_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.ConfigurationError, match="HEADGATE_API_KEY"):
        Headgate()
    monkeypatch.setenv("HEADGATE_API_KEY", "hg_x")
    monkeypatch.setenv("HEADGATE_BASE_URL", "http://example.test:9/v1/")
    assert Headgate().base_url == "http://example.test:9"
    assert Headgate(base_url="http://h/prefix/v1").base_url == "http://h/prefix"
    with pytest.raises(errors.ConfigurationError, match="not an http"):
        Headgate(base_url="localhost:8080")
    with pytest.raises(errors.ConfigurationError, match="characters"):
        Headgate(api_key="hg x")
    with pytest.raises(errors.ConfigurationError, match="unknown"):
        Headgate(transport="curl")  # type: ignore[arg-type]
    monkeypatch.setenv("HEADGATE_OFFLINE", "1")
    with pytest.raises(errors.OfflineError, match="FakeGateway"):
        Headgate()
    assert FakeGateway().client().models.list()


def test_too_many_tags() -> None:
    client = FakeGateway().client()
    with pytest.raises(ValueError, match="at most 16"):
        client.chat.completions.create(
            model="echo",
            messages=HELLO,  # type: ignore[arg-type]
            tags={str(n): "x" for n in range(17)},
        )
