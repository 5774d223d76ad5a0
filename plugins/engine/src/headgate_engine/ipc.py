"""The one wire inside the house: length-prefixed MessagePack frames on Unix sockets.

A frame is a 4-byte big-endian length and that many bytes of MessagePack (never pickle). Frames sent in one turn
of the event loop leave in one write; frames are size-capped on both ends; sockets are mode 0600 in folders of
mode 0700. Frames that were read before the peer or our own write failed are still delivered: a reply that a
dying ledger managed to send is a fact, and must not be lost with the connection. Imports only msgspec.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes. Larger than any body the gateway takes by default, so that one request is always one frame."""

HIGH_WATER: Final = 8 * 1024 * 1024
"""Bytes that may wait for the peer before `Connection.drained` blocks."""

_LENGTH: Final = struct.Struct(">I")
_HEADER: Final = _LENGTH.size
_READ: Final = 256 * 1024

T = TypeVar("T")


class FrameTooLarge(Exception):
    """A frame is over the cap; the connection cannot be trusted any further."""


class ConnectionLost(ConnectionError):
    """The peer went away."""


class Codec(Generic[T]):
    """Encodes messages and decodes frames of one direction's message type.

    Attributes:
        decode: One message from a frame's bytes. Raises `msgspec.DecodeError`.
    """

    def __init__(self, received: Any, *, max_frame: int = MAX_FRAME) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self.decode: Callable[[bytes | memoryview], T] = msgspec.msgpack.Decoder(received).decode
        self.max_frame = max_frame

    def encode_into(self, message: Any, buffer: bytearray) -> None:
        """Append one frame to `buffer`; on any error the buffer is as it was.

        Raises:
            FrameTooLarge: The message is over the cap.
            TypeError: It holds something that MessagePack has no form for.
        """
        frame = self._encode(message)
        length = len(frame)
        if length > self.max_frame:
            raise FrameTooLarge(f"a frame of {length} bytes is over the cap of {self.max_frame}")
        buffer += _LENGTH.pack(length)
        buffer += frame


class Connection(asyncio.Protocol, Generic[T]):
    """One end of a socket: `send` to the peer, `on_message` for each message that comes.

    Attributes:
        on_message: Called for each message, in order, on the loop. Must not block.
        on_close: Called once, after the last message; with the error when it was not a clean end.
    """

    def __init__(
        self,
        codec: Codec[T],
        on_message: Callable[[Connection[T], T], None],
        on_close: Callable[[Connection[T], Exception | None], None] | None = None,
        on_open: Callable[[Connection[T]], None] | None = None,
    ) -> None:
        self.codec = codec
        self.on_message = on_message
        self.on_close = on_close
        self.on_open = on_open
        self.peer: Any = None
        """Whatever the owner wants to remember about the peer."""
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._flush_planned = False
        self._closed = self._loop.create_future()
        self._writable = asyncio.Event()
        self._writable.set()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        # A cast, because uvloop's transports do not descend from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        if self.on_open is not None:
            self.on_open(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. Handles every whole frame of what has come, at once."""
        incoming, codec, on_message = self._incoming, self.codec, self.on_message
        incoming += data
        position, available = 0, len(incoming)
        try:
            with memoryview(incoming) as view:
                while (start := position + _HEADER) <= available:
                    (length,) = _LENGTH.unpack_from(view, position)
                    if length > codec.max_frame:
                        raise FrameTooLarge(f"the peer announced a frame of {length} bytes")
                    end = start + length
                    if end > available:
                        break
                    message = codec.decode(view[start:end])
                    position = end
                    on_message(self, message)
        except (FrameTooLarge, msgspec.DecodeError) as error:
            self._incoming = bytearray()  # not cleared: a failed decode may still hold a view of the old one
            self._fail(error)
            return
        del incoming[:position]

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol. After a failed write, what the peer had sent before it went is read first."""
        self._writable.set()
        self._outgoing.clear()
        if isinstance(exc, ConnectionError) and not self._closed.done():
            self._read_rest()
        if not self._closed.done():
            self._closed.set_result(None)
            if self.on_close is not None:
                self.on_close(self, exc)

    # -- ours

    @property
    def is_open(self) -> bool:
        """Whether the peer can still be written to."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: Any) -> None:
        """Queue one message; it leaves with all others of this turn of the loop.

        Raises:
            ConnectionLost: The connection is closed.
            FrameTooLarge: The message is over the cap; nothing was queued.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost("the connection is closed")
        self.codec.encode_into(message, self._outgoing)
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    @property
    def backlog(self) -> int:
        """Bytes that wait for the peer to read them."""
        waiting = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return waiting + len(self._outgoing)

    def abort(self) -> None:
        """Drop the connection, and what is queued with it."""
        if self._transport is not None:
            self._transport.abort()

    async def drained(self) -> None:
        """Wait until the peer has taken enough that sending more is polite."""
        await self._writable.wait()

    def close(self) -> None:
        """Send what is queued, then close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    async def closed(self) -> None:
        """Wait until the connection is gone."""
        await asyncio.shield(self._closed)

    def _flush(self) -> None:
        self._flush_planned = False
        if self._outgoing and self._transport is not None:
            data, self._outgoing = self._outgoing, bytearray()
            if not self._transport.is_closing():
                self._transport.write(data)

    def _read_rest(self) -> None:
        """Take what lies in the kernel's buffer: the loop forgets it when a write fails (EPIPE)."""
        endpoint = self._transport.get_extra_info("socket") if self._transport is not None else None
        if endpoint is None:
            return
        with contextlib.suppress(OSError):  # empty (EAGAIN), or nothing was sent before the reset
            while data := os.read(endpoint.fileno(), _READ):
                self.data_received(data)

    def _fail(self, error: Exception) -> None:
        if self._transport is not None:
            self._transport.abort()
        if not self._closed.done():
            self._closed.set_result(None)
            if self.on_close is not None:
                self.on_close(self, error)


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can enter."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


async def listen(path: Path, factory: Callable[[], Connection[Any]]) -> asyncio.Server:
    """Listen on a Unix socket, mode 0600, replacing a dead one that lies in its place.

    The caller makes sure that no living process listens there (by a lock, see the ledger).
    """
    private_folder(path.parent)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old_mask)
    listener.listen(1024)
    listener.setblocking(False)
    return await asyncio.get_running_loop().create_unix_server(factory, sock=listener)


async def connect(path: Path, connection: Callable[[], Connection[T]]) -> Connection[T]:
    """Connect to a Unix socket. Raises `OSError` when nobody listens."""
    _, protocol = await asyncio.get_running_loop().create_unix_connection(connection, str(path))
    return protocol
