"""What the rules refuse, and how they say so: bad values, budgets in the way. May import book."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from headgate_gateway.domain import money
from headgate_gateway.domain.admission import Refused
from headgate_gateway.domain.budgets import FOREVER
from headgate_gateway.domain.commands import Rejected, RejectionCode
from headgate_gateway.domain.pricing import DENOMINATOR
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import Account, Counts, Window

MOST: Final = 10**12
"""The largest quantity of anything that one request may have."""

TEXT: Final = 512
"""As long as a tag may be."""

TAGS: Final = 16

RETRY_ESTIMATE_MS: Final = 1000
"""When something frees up only as other requests end, nobody knows when: at least this long."""

_ALL: Final = 2**40
"""More output tokens than any request makes."""


class Invalid(Exception):
    """A command that cannot be carried out; `rejected` is the answer to it."""

    def __init__(self, message: str, field: str | None = None, *, code: RejectionCode = "invalid") -> None:
        super().__init__(message)
        self.rejected = Rejected(code=code, message=message, field=field)


def over_budget(
    op: wire.Admit, accounts: Mapping[str, Account], windows: Iterable[Window], fixed: int, step: int
) -> wire.Denied:
    """Say which window is in the way: one that is spent before one that other requests hold."""
    least = max(op.least, 1) if op.most else 0
    needed = -(-(fixed + least * step) // DENOMINATOR)
    full = [w for w in windows if needed > w.room]
    blocking = min(full, key=lambda w: (needed <= w.limit - w.spent, w.limit - w.spent))
    left = blocking.limit - blocking.spent
    code, retry = "request_exceeds_budget", None
    largest = None
    if left <= 0:
        code, text = "budget_exhausted", "is spent"
    elif needed <= left:
        code, text = "budget_in_flight", "is held by requests in flight"
        retry = RETRY_ESTIMATE_MS
    else:
        text = "has less left than this request may cost"
        largest = max(0, affordable(left, fixed, step)) if step else 0
    account = accounts[blocking.account]
    scope = f"{account.kind}:{blocking.kind}"
    return denied(
        op.n, code,
        f"the {blocking.kind} budget of the {account.kind} {account.name or account.id} {text}: limit "
        f"{money.format_amount(blocking.limit)}, spent {money.format_amount(blocking.spent)}, held "
        f"{money.format_amount(blocking.held)}, needed {money.format_amount(needed)}",
        scope=scope, limit=blocking.limit, spent=blocking.spent, held=blocking.held,
        resets_at=None if blocking.end_us == FOREVER else blocking.end_us, retry_after_ms=retry,
        largest_output=largest,
    )  # fmt: skip


def affordable(room: int, fixed: int, step: int) -> int:
    """Output tokens that fit into room beside the fixed part; negative where not even that fits."""
    over = room * DENOMINATOR - fixed
    if over < 0:
        return -1
    return over // step if step else _ALL


def find_fault(op: wire.Admit) -> str | None:
    """What of an admission no store could keep; such an operation must not spoil its batch."""
    numbers = (*op.bound, op.least, op.most)
    if min(numbers) < 0 or max(numbers) > MOST or op.least > op.most:
        return f"quantities must be from 0 to {MOST}, and the least output at most the most"
    texts = (op.request_id, op.model, op.task, op.claim or "", *op.tags, *op.tags.values())
    if len(op.tags) > TAGS or "\0" in "".join(texts) or max(map(len, texts)) > TEXT:
        return f"texts must be at most {TEXT} characters without NUL, and tags at most {TAGS}"
    return None


def sane(op: wire.Settle) -> wire.Settle:
    """A settlement is never refused: what a hostile upstream reported is cut to what a store can keep."""
    usage = op.usage
    texts = (op.source, op.outcome, op.backend)
    joined = "".join(texts)
    if 0 <= min(usage) <= max(usage) <= MOST and len(joined) <= TEXT and "\0" not in joined:
        return op
    source, outcome, backend = (text.replace("\0", "")[:TEXT] for text in texts)
    counts: Counts = tuple(max(0, min(count, MOST)) for count in usage)  # type: ignore[assignment]
    return msgspec.structs.replace(op, usage=counts, source=source, outcome=outcome, backend=backend)


def denied(n: int, code: str, message: str, **facts: object) -> wire.Denied:
    """A refusal; `facts` are the fields of `Refused`."""
    return wire.Denied(n, Refused(code=code, message=message, **facts))  # type: ignore[arg-type]
