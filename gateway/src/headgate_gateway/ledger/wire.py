"""Messages between the ledger and its clients: one operation, one numbered answer.

Messages are arrays with a small integer for a tag, because one of each kind passes for every request. A client
numbers its operations (`n`); an answer names the number. Operations on a request are idempotent by its id, so a
client that lost its connection sends what is unanswered again. May import domain.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from headgate_gateway.domain.admission import LimitState, Principal, Refused, Traced
from headgate_gateway.domain.commands import WireCommand, WireResult
from headgate_gateway.domain.pricing import Counts, PriceVersion

Position = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""A place in the order of records."""

PROTOCOL = 1
"""A ledger refuses clients that speak another number."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """First message of a client.

    Attributes:
        worker: Its number; -1 for one that admits nothing (the command line).
        incarnation: Names this life of it and its flight file; empty where it has none.
        in_flight: Requests that it still works on; holds of this incarnation beyond them are voided.
    """

    protocol: int
    worker: int
    incarnation: str
    in_flight: list[str]


class Admit(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Ask that a request be admitted. `bound` is in the order of `DIMENSIONS`; times are microseconds UTC."""

    n: int
    request_id: str
    key_id: str
    model: str
    task: str
    bound: Counts
    least: int
    most: int
    stream: bool
    deadline_us: int
    claim: str | None = None
    fingerprint: bytes = b""
    tags: dict[str, str] = {}
    waive: bool = False


class Extend(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Ask that the hold cover `output` tokens in all."""

    n: int
    request_id: str
    output: int


class Settle(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """End a request with a usage record. `detail` is the attempts, packed by the worker."""

    n: int
    request_id: str
    usage: Counts
    source: str
    outcome: str
    backend: str
    billed: bool = True
    first_byte_us: int | None = None
    attempts: bytes = b""
    answer: bytes | None = None


class Void(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """End a request of which nothing was dispatched: everything it took is given back."""

    n: int
    request_id: str


class Identify(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Ask who a key, by its digest, speaks for."""

    n: int
    digest: bytes


class Run(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Carry out an administrative command; `actor` is kept in the audit log."""

    n: int
    command: WireCommand
    actor: str = ""


class Seen(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The client has dropped what a `Changed` told it to drop."""

    serial: int


class Trace(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Ask what became of the request behind an idempotency key; nothing is admitted."""

    n: int
    key_id: str
    model: str
    claim: str
    fingerprint: bytes


class Advance(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Say how far a consumer of usage records has come: what is up to `position` was handed to it.

    Attributes:
        epoch: From the `Cursor` that was gone by; None begins there, if there is no cursor yet.
        error: Why it comes no further at present.
    """

    n: int
    consumer: str
    position: Position
    epoch: Position | None
    error: str = ""


ToLedger = Hello | Admit | Extend | Settle | Void | Identify | Run | Seen | Trace | Advance
Op = Admit | Extend | Settle | Void | Run


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Answer to `Hello`: what a client needs to know keys and prices by itself; see `PriceBook.ahead`.

    `usable` is as in `Store`.
    """

    pepper: bytes
    admin_digest: bytes
    prices: list[PriceVersion]
    usable: bool = True


class Grant(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Admitted; see `domain.admission.Granted`."""

    n: int
    request_id: str
    output: int
    held: int
    price: str | None
    limits: tuple[LimitState, ...] = ()
    retry_of: str | None = None
    over: tuple[str, ...] = ()


class Replayed(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Answered before; see `domain.admission.Replay`."""

    n: int
    request_id: str
    answer: bytes
    cost: int
    price: str | None


class Denied(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Not admitted."""

    n: int
    refused: Refused


class Recorded(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """The request has ended and its record is on disk; `price` None and cost 0 for a voided one."""

    n: int
    request_id: str
    cost: int
    overrun: int = 0
    price: str | None = None


class Covered(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Answer to `Extend`. `full` is False where less than was asked could be held; `others` says that other
    requests hold what is missing, so that waiting may help.
    """

    n: int
    request_id: str
    output: int
    held: int
    full: bool = True
    others: bool = False


class Identity(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """Who a digest speaks for, None for nobody."""

    n: int
    principal: Principal | None
    expires_us: int | None = None


class Ran(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Answer to `Run`."""

    n: int
    result: WireResult


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """The operation could not be carried out: `unknown_request`, `unavailable`, `invalid`."""

    n: int
    code: str
    message: str


class Changed(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """Forget these keys (None: all of them) and take these prices (None: unchanged); confirm with `Seen`."""

    serial: int
    keys: list[str] | None
    prices: list[PriceVersion] | None = None


class Trail(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """Answer to `Trace`."""

    n: int
    traced: Traced


class Store(msgspec.Struct, frozen=True, array_like=True, tag=31):
    """Whether the ledger can use its store from now on; nobody asked for this."""

    usable: bool


class Cursor(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """Answer to `Advance`: where the cursor is now, None where there is none any more."""

    n: int
    position: int | None
    epoch: int


Reply = Grant | Replayed | Denied | Recorded | Covered | Ran | Failed
FromLedger = (
    Welcome
    | Grant
    | Replayed
    | Denied
    | Recorded
    | Covered
    | Identity
    | Ran
    | Failed
    | Changed
    | Trail
    | Store
    | Cursor
)
