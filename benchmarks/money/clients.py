"""The load: clients that ask, hang up, ask again, and write down what they were told. Speaks OpenAI's wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import httpx

from benchmarks.money.plan import Operation

HUNG_S: Final = 40.0
"""A try that takes longer hangs; every wait of a gateway is shorter."""

PATIENCE_S: Final = 60.0
"""How long a client tries to get an operation done."""

RESUMED_S: Final = 5
"""How long a resumed stream is to run on without its client."""

LEAVING_MS: Final = 2
"""What a word is in milliseconds to a client that waits for a whole answer and leaves early."""


@dataclass
class Try:
    """One request as its client saw it.

    Attributes:
        status: HTTP status; None when no answer came.
        code: The error's code.
        request_id: The gateway's name for it, where it said one.
        complete: All of the answer arrived, and its end mark.
        words: Words that arrived; of a resumed stream, those of the connections before as well.
        text: The words.
        last_id: The newest event's id, to go on from.
        cost: Nano-units that the gateway said it costs.
        replayed: It was an earlier try's answer.
        left: The client hung up.
        hung: Nothing came for too long.
    """

    status: int | None = None
    code: str = ""
    request_id: str = ""
    complete: bool = False
    text: list[str] = field(default_factory=list)
    last_id: str = ""
    cost: int | None = None
    replayed: bool = False
    left: bool = False
    hung: bool = False
    retry_after: float = 0.2

    @property
    def words(self) -> int:
        """How many arrived."""
        return len(self.text)


@dataclass
class Done:
    """An operation and all its tries. `resolved` is False when the client lost patience."""

    operation: Operation
    tries: list[Try] = field(default_factory=list)
    resolved: bool = False


class Load:
    """Runs operations with so many clients at a time.

    Args:
        urls: The gateway's addresses, one per node; each try of an operation goes to another one.
        keys: One per account; who rotates one puts its successor in its place.
        clients: How many ask at the same time.

    Attributes:
        done: Operations that were begun, in that order.
    """

    def __init__(self, urls: Sequence[str], keys: list[str], *, clients: int = 32) -> None:
        self._urls = urls
        self._keys = keys
        self._clients = clients
        self._stopped = False
        self.done: list[Done] = []

    async def run(self, operations: Iterator[Operation], most: int | None = None) -> None:
        """Ask until told to stop, or until so many operations are done."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._client(operations, most))

    def stop(self) -> None:
        """Begin no further operation."""
        self._stopped = True

    async def _client(self, operations: Iterator[Operation], most: int | None) -> None:
        limits = httpx.Limits(max_connections=8)
        async with httpx.AsyncClient(timeout=HUNG_S, limits=limits) as http:
            while not self._stopped and (most is None or len(self.done) < most):
                done = Done(next(operations))
                self.done.append(done)
                await self._carry_out(http, done)

    async def _carry_out(self, http: httpx.AsyncClient, done: Done) -> None:
        operation = done.operation
        if operation.twice and operation.order.words % 2:
            both = await asyncio.gather(self._try(http, done), self._try(http, done))
            if any(one.complete for one in both):
                done.resolved = True
                return
        until = asyncio.get_running_loop().time() + PATIENCE_S
        while asyncio.get_running_loop().time() < until:
            tried = await self._try(http, done)
            if operation.resumed and tried.left:
                tried.left = False
                continue
            told_to_its_end = operation.resumed and tried.status == 200 and bool(tried.code)
            if told_to_its_end or _final(tried):
                done.resolved = True
                if tried.complete and operation.twice:
                    await self._try(http, done)
                return
            await asyncio.sleep(min(tried.retry_after, 0.5))

    async def _try(self, http: httpx.AsyncClient, done: Done) -> Try:
        operation = done.operation
        tried = Try()
        if operation.resumed and done.tries and done.tries[-1].last_id:
            before = done.tries[-1]
            tried.last_id, tried.text, tried.request_id = before.last_id, list(before.text), before.request_id
        done.tries.append(tried)
        leaves = operation.leaves_after is not None and len(done.tries) == 1
        try:
            async with asyncio.timeout(_patience(operation, leaves=leaves)):
                await self._ask(http, done, tried, leaves=leaves)
        except TimeoutError:
            tried.left, tried.hung = leaves, not leaves
        except httpx.TimeoutException:
            tried.hung = True
        except (httpx.TransportError, json.JSONDecodeError):
            pass  # the connection broke: what was told until then stands in the try
        return tried

    async def _ask(self, http: httpx.AsyncClient, done: Done, tried: Try, *, leaves: bool) -> None:
        operation = done.operation
        headers = {
            "authorization": f"Bearer {self._keys[operation.account]}",
            "headgate-tags": f"op={operation.name}",
        }
        if operation.claimed:
            headers["idempotency-key"] = f"idem-{operation.name}"
        if operation.resumed:
            headers["headgate-resumable"] = str(RESUMED_S)
        if tried.last_id:
            headers["last-event-id"] = tried.last_id
        url = self._urls[(operation.account + len(done.tries)) % len(self._urls)]
        async with http.stream("POST", url + operation.path, json=operation.body(), headers=headers) as answer:
            tried.status = answer.status_code
            if answer.status_code == 200 or not tried.request_id:
                tried.request_id = answer.headers.get("x-request-id", "")
            tried.replayed = answer.headers.get("idempotency-replayed") == "true"
            with contextlib.suppress(ValueError):
                tried.retry_after = float(answer.headers.get("retry-after", "0.2"))
            if answer.status_code != 200:
                tried.code = _code(await answer.aread())
            elif operation.stream:
                await _read_stream(answer, tried, operation.leaves_after if leaves else None)
            else:
                document = json.loads(await answer.aread())
                tried.request_id = tried.request_id or document["id"]
                tried.text = _told(operation, document)
                stated = (document.get("usage") or {}).get("cost", answer.headers.get("headgate-cost"))
                tried.cost = _nano(stated)
                tried.complete = True


def _patience(operation: Operation, *, leaves: bool) -> float:
    if leaves and not operation.stream and operation.leaves_after is not None:
        return operation.leaves_after * LEAVING_MS / 1000
    return HUNG_S


async def _read_stream(answer: httpx.Response, tried: Try, leaves_after: int | None) -> None:
    event = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            event = line[7:]
        if line.startswith("id: "):
            tried.last_id = line[4:]
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            tried.complete = not tried.code
            return
        document = json.loads(line[6:])
        if event == "error" or "error" in document:
            tried.code = _code(line[6:].encode())
            return
        tried.request_id = tried.request_id or document.get("id", "")
        if document.get("usage"):
            tried.cost = _nano(document["usage"].get("cost"))
        for choice in document["choices"]:
            tried.text += (choice["delta"].get("content") or "").split()
        if leaves_after is not None and tried.words >= leaves_after:
            tried.left = True
            return


def _told(operation: Operation, document: dict[str, Any]) -> list[str]:
    """What a whole answer says, as `Operation.answer` has it."""
    match operation.task:
        case "chat":
            return str(document["choices"][0]["message"]["content"]).split()
        case "embed":
            return [str(item["index"]) for item in document["data"]]
        case "infer":
            return [str(number) for number in document["outputs"][0]["data"]]


def _nano(stated: object) -> int | None:
    return None if stated is None else round(Decimal(str(stated)) * 10**9)


def _code(body: bytes) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        document = json.loads(body)
        error = document.get("error", document)
        error = error if isinstance(error, dict) else document
        return str(error.get("code") or error.get("type") or "?")
    return "?"


def _final(tried: Try) -> bool:
    """Whether trying again is of no use, or not wanted."""
    if tried.complete or tried.left:
        return True
    final = ("idempotency_consumed", "stream_lost")
    return tried.status in (400, 401, 402, 403, 404, 422) or tried.code in final
