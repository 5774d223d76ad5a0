"""A cassette: what a gateway said once is heard again, in both colours, without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from headgate import errors
from headgate.testing import Cassette, Refuse

from .conftest import HELLO, Driver, say


async def talk(drive: Driver, client: Any) -> list[Any]:
    heard: list[Any] = []
    create = client.chat.completions.create
    for words in ("one", "two words", "one"):
        answer = await drive.do(create, model="echo", messages=say(words))
        heard.append((answer.text, answer.cost, answer.request_id, len(answer.attempts)))
    async with drive.within(client.chat.completions.stream(model="echo", messages=HELLO)) as stream:
        heard.append([piece async for piece in drive.each(stream.text)])
    heard.append((stream.cost, stream.usage))
    try:
        await drive.do(create, model="nope", messages=HELLO)
    except errors.NotFound as error:
        heard.append((error.code, error.request_id))
    heard.append([model.id for model in await drive.do(client.models.list)])
    return heard


async def test_what_was_heard_is_heard_again(
    drive: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.jsonl"
    cassette = Cassette(path)
    record: Any = cassette.record if drive.colour == "sync" else cassette.record_async
    drive.gateway.script(Refuse(503, "overloaded", 1))
    first = await talk(drive, drive.client(middleware=[record], api_key="hg_secret"))
    assert "hg_secret" not in path.read_text()
    asked = len(drive.gateway.seen)
    monkeypatch.setenv("HEADGATE_OFFLINE", "1")
    tape = Cassette(path)
    clock = drive.gateway.clock.as_clock()
    client: Any = tape.client(clock=clock) if drive.colour == "sync" else tape.async_client(clock=clock)
    assert await talk(drive, client) == first
    assert first[0][-1] == 2, "the refusal was recorded, too"
    assert len(drive.gateway.seen) == asked
    with pytest.raises(errors.OfflineError, match="POST /v1/chat/completions"):
        await drive.do(client.chat.completions.create, model="echo", messages=say("one"))


async def test_a_stream_that_was_left_is_kept_as_far_as_it_came(drive: Driver, tmp_path: Path) -> None:
    cassette = Cassette(tmp_path / "left.jsonl")
    record: Any = cassette.record if drive.colour == "sync" else cassette.record_async
    client = drive.client(middleware=[record])
    async with drive.within(client.chat.completions.stream(model="echo", messages=HELLO)) as stream:
        async for _ in drive.each(stream.text):
            break
    tape: Any = cassette.client() if drive.colour == "sync" else cassette.async_client()
    with pytest.raises(errors.StreamInterrupted) as caught:
        async with drive.within(tape.chat.completions.stream(model="echo", messages=HELLO)) as stream:
            await drive.list(stream.text)
    assert caught.value.partial == "hello"
