"""Commands of the house's own processes: what they have the ledger keep in its history. Imports msgspec."""

from __future__ import annotations

from typing import Literal

import msgspec


class NoteModel(msgspec.Struct, frozen=True, kw_only=True, tag="note_model"):
    """What an operator had done to a model's engines, for the audit log.

    Attributes:
        model: The configured model id.
        action: What was asked for.
        failed: Why it did not succeed; empty when it did.
    """

    model: str
    action: Literal["load", "unload"]
    failed: str = ""


class KeepSeal(msgspec.Struct, frozen=True, kw_only=True, tag="keep_seal"):
    """One part of a seal, for the history to keep.

    Attributes:
        seal: Which seal, counted from 1.
        part: Which part of it, counted from 0.
        parts: How many it has.
        body: Packed.
        mac: 32 bytes.
    """

    seal: int
    part: int
    parts: int
    body: bytes
    mac: bytes


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What of one chain is in a file of the archive.

    Attributes:
        chain: Which.
        until: Its last link there.
        count: How many rows.
    """

    chain: int
    until: int
    count: int


class KeepArchive(msgspec.Struct, frozen=True, kw_only=True, tag="keep_archive"):
    """Note that history is in a file, whole and verified, and let go of it.

    Attributes:
        seal: The one that the file ends at.
        until_us: That seal's time.
        file: Where it lies.
        hash: Its SHA-256.
        size: Its bytes.
        left: What is in it.
    """

    seal: int
    until_us: int
    file: str
    hash: bytes
    size: int
    left: tuple[Left, ...]
