"""An OpenAI-compatible upstream that misbehaves as it is told, and writes down the truth.

`python -m benchmarks.truthful_upstream --log FILE [--port 0]` prints `{"port": N}` and serves
`POST /v1/chat/completions` and `/v1/embeddings` until it is stopped. It knows nothing of any gateway: what it is
to do stands in the request's `user` field (see `Order`), which gateways pass on.

Every word of an answer is three letters and a space, so that a gateway which counts four bytes as a token counts
as the upstream does. The log has one JSON line per attempt, written when it has ended; see `Truth`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

Behaviour = Literal["honest", "silent", "inflate", "deflate", "negative", "slow", "stall", "reset", "error"]
BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)
"""honest; says no usage; a million times too much; nothing; less than nothing; a pause per word; stops halfway
and keeps the line open; resets it halfway; answers 500 at once. The last three mend at the second attempt."""

End = Literal["complete", "stall", "reset", "error", "peer_gone"]

STALL_S = 60.0
SLOW_S = 0.01
MOST_BODY = 1 << 20
MOST_HEADERS = 64 << 10
WORDS = tuple("".join(letters) for letters in itertools.product("abcdefgh", repeat=3))


@dataclass(frozen=True)
class Order:
    """What a request's `user` field asks of the upstream: `op:WORDS:BEHAVIOUR`.

    Attributes:
        op: Names the operation; all attempts that a client or gateway makes for it carry the same name.
        words: Words of the answer, fewer where the request's own limit is lower.
        behaviour: How it is told.
    """

    op: str
    words: int
    behaviour: Behaviour

    def __str__(self) -> str:
        return f"{self.op}:{self.words}:{self.behaviour}"

    @classmethod
    def parse(cls, text: str) -> Order:
        """Read it back.

        Raises:
            ValueError: It is none.
        """
        op, words, behaviour = text.split(":")
        if behaviour not in BEHAVIOURS:
            raise ValueError(f"no behaviour {behaviour!r}")
        return cls(op, int(words), behaviour)


@dataclass(frozen=True)
class Truth:
    """What really happened in one attempt.

    Attributes:
        op: The order's name.
        attempt: 1 for the first that arrived.
        stream: How it was asked.
        prompt: Input tokens.
        words: Output tokens that were written to the connection; of a whole answer all or none.
        end: How it ended.
    """

    op: str
    attempt: int
    stream: bool
    prompt: int
    words: int
    end: End


def answer_words(op: str, count: int) -> list[str]:
    """The words of an answer; another order has others."""
    start = sum(op.encode()) % len(WORDS)
    return [WORDS[(start + number) % len(WORDS)] + " " for number in range(count)]


def read_truth(path: Path) -> Iterator[Truth]:
    """The log; a line that is being written is left out."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield Truth(**json.loads(line))


class Upstream:
    """Serves orders and logs the truth.

    Args:
        log: Where the lines go, one write each.
    """

    def __init__(self, log: IO[str]) -> None:
        self._log = log
        self._attempts: dict[str, int] = {}

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, until either side has had enough."""
        unusable = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)
        with contextlib.suppress(*unusable, asyncio.CancelledError):
            early: bytes | None = b""
            while early is not None:
                early = await self._request(early, reader, writer)
        writer.close()

    async def _request(
        self, early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        """One request; returns what of the next was read already, None when the connection is of no more use."""
        head = early + await reader.readuntil(b"\r\n\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
        }
        length = int(headers.get("content-length", "0"))
        if not head.startswith(b"POST ") or not 0 < length <= MOST_BODY:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return None
        document = json.loads(await reader.readexactly(length))
        order = Order.parse(document.get("user") or "unnamed:5:honest")
        attempt = self._attempts[order.op] = self._attempts.get(order.op, 0) + 1
        answering = _Answer(order, document, attempt, writer)
        # A client that goes away is noticed at once, as a real provider's model server would.
        gone = asyncio.ensure_future(reader.read(1))
        telling = asyncio.ensure_future(answering.tell())
        try:
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
            if not telling.done():
                telling.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await telling
        finally:
            gone.cancel()
            next_byte: bytes | None = b""
            with contextlib.suppress(asyncio.CancelledError, OSError):
                next_byte = await gone or None
            self._log.write(json.dumps(asdict(answering.truth())) + "\n")
            self._log.flush()
        return next_byte if answering.end in ("complete", "error") else None


class _Answer:
    """One attempt at one order."""

    def __init__(
        self, order: Order, document: dict[str, Any], attempt: int, writer: asyncio.StreamWriter
    ) -> None:
        self._order = order
        self._writer = writer
        self._attempt = attempt
        self._stream = bool(document.get("stream"))
        limit = document.get("max_tokens") or document.get("max_completion_tokens") or order.words
        self._texts: list[str] | None = document.get("input")
        self._words = answer_words(order.op, min(order.words, limit)) if self._texts is None else []
        self._reason = "length" if limit < order.words else "stop"
        said = [str(message.get("content", "")) for message in document.get("messages", ())]
        self._prompt = sum(len(text.split()) for text in self._texts or said)
        self._model = document.get("model", "")
        self._told = 0
        self.end: End = "peer_gone"

    def truth(self) -> Truth:
        """What came of it."""
        return Truth(self._order.op, self._attempt, self._stream, self._prompt, self._told, self.end)

    @property
    def _fault(self) -> Behaviour:
        mended = self._attempt > 1 and self._order.behaviour in ("stall", "reset", "error")
        return "honest" if mended else self._order.behaviour

    def _usage(self) -> dict[str, int] | None:
        prompt, output = self._prompt, len(self._words)
        match self._fault:
            case "silent":
                return None
            case "inflate":
                prompt, output = prompt * 1_000_000, output * 1_000_000
            case "deflate":
                prompt, output = 0, 0
            case "negative":
                prompt, output = -prompt, -output
            case _:
                pass
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    async def tell(self) -> None:
        """Send the answer, as far as the behaviour goes."""
        if self._fault == "error":
            await self._whole(500, {"error": {"message": "ordered to fail", "type": "server_error"}})
            self.end = "error"
        elif self._stream:
            await self._streamed()
        else:
            await self._at_once()

    async def _at_once(self) -> None:
        if self._fault == "slow":
            await asyncio.sleep(SLOW_S * len(self._words))
        if self._fault in ("stall", "reset"):
            self._writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{"
            )
            await self._break_off()
            return
        document = self._completion() if self._texts is None else self._embeddings(self._texts)
        if (usage := self._usage()) is not None:
            document["usage"] = usage
        self._told = len(self._words)
        await self._whole(200, document)
        self.end = "complete"

    def _completion(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self._words)}
        return self._frame("chat.completion", [{"index": 0, "message": message, "finish_reason": self._reason}])

    def _embeddings(self, texts: list[str]) -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": index, "embedding": [len(text), 1.0]}
            for index, text in enumerate(texts)
        ]
        return {"object": "list", "data": data, "model": self._model}

    async def _streamed(self) -> None:
        self._writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        await self._event({"role": "assistant", "content": ""}, None)
        half = (len(self._words) + 1) // 2
        for number, word in enumerate(self._words):
            if number == half and self._fault in ("stall", "reset"):
                await self._break_off()
                return
            if self._fault == "slow":
                await asyncio.sleep(SLOW_S)
            self._told += 1
            await self._event({"content": word}, None)
        await self._event({}, self._reason)
        if (usage := self._usage()) is not None:
            await self._chunk({**self._frame("chat.completion.chunk", []), "usage": usage})
        self._writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await self._writer.drain()
        self.end = "complete"

    async def _break_off(self) -> None:
        await self._writer.drain()
        if self._fault == "stall":
            self.end = "stall"
            await asyncio.sleep(STALL_S)
            return
        self.end = "reset"
        raw: socket.socket = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def _frame(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._order.op}-{self._attempt}",
            "object": kind,
            "created": 1_700_000_000,
            "model": self._model,
            "choices": choices,
        }

    async def _event(self, delta: dict[str, str], reason: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        await self._chunk(self._frame("chat.completion.chunk", [choice]))

    async def _chunk(self, document: dict[str, Any]) -> None:
        data = b"data: " + json.dumps(document).encode() + b"\n\n"
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._writer.drain()

    async def _whole(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        phrase = b"OK" if status == 200 else b"Internal Server Error"
        self._writer.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, phrase, len(body), body)
        )
        await self._writer.drain()


async def serve(log: Path, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    with log.open("a", encoding="utf-8") as lines:
        upstream = Upstream(lines)
        server = await asyncio.start_server(upstream.connection, "127.0.0.1", port, limit=MOST_HEADERS)
        print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="where the truth goes, one JSON line per attempt")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    asyncio.run(serve(given.log, given.port))


if __name__ == "__main__":
    main()
