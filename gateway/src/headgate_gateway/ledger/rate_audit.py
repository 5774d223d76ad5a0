"""What an audit can say of limits per minute. May import book, domain.limits, replay and store.recent.

Of a limit's state, its TAT, history has the admissions and not their order, so it cannot be replayed. Exact are
the limits themselves and what an open request took; the TAT of a limit of requests is held between bounds: never
further ahead than it can be taken, nor behind what the requests of the last minute took.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

from headgate_gateway.domain.limits import WINDOW_US
from headgate_gateway.ledger.book import Hold, Rate, Take
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.store.recent import RateRow

_TOKENS: Final = 5
"""How many of the first dimensions count as tokens."""


class RateAudit:
    """Limits per minute, as history and open holds have them.

    Attributes:
        since_us: What happened until then may be unknown: where the audit began.
    """

    def __init__(self) -> None:
        self.since_us = 0
        self._latest_us = 0
        self._limits: dict[tuple[str, str], dict[str, Any]] = {}
        self._ended: deque[tuple[int, int, tuple[str, ...]]] = deque()
        """(end, admission, accounts) of the requests that ended in the last minute."""
        self._voided: deque[int] = deque()
        self._open: dict[str, list[int]] = defaultdict(list)

    def saw(self, table: str, row: dict[str, Any]) -> None:
        """Take a row of history."""
        if table == "limits":
            last = self._limits.get((row["account"], row["kind"]))
            if last is None or row["id"] > last["id"]:
                self._limits[row["account"], row["kind"]] = row
        elif table == "usage_records" and self._recent(row["finished_us"]):
            accounts = (row["key_id"], row["project_id"], row["organization_id"])
            if any((account, "requests") in self._limits for account in accounts):
                self._ended.append((row["finished_us"], row["admitted_us"], accounts))
        elif table == "voids" and self._recent(row["at_us"]):
            self._voided.append(row["at_us"])

    def _recent(self, at_us: int) -> bool:
        """Whether it still counts; forgets what does not."""
        self._latest_us = max(self._latest_us, at_us)
        old_us = self._latest_us - WINDOW_US
        while self._ended and self._ended[0][0] < old_us:
            self._ended.popleft()
        while self._voided and self._voided[0] < old_us:
            self._voided.popleft()
        return at_us >= old_us

    def open(self, hold: Hold) -> None:
        """Take an open hold: what it took must have fitted when it was admitted.

        Raises:
            Differs: It cannot have taken that.
        """
        for taken in hold.takes:
            if taken.kind == "requests":
                self._open[taken.account].append(hold.admitted_us)
            if not _fitted(hold, taken):
                raise Differs(
                    f"the open hold of {hold.request_id} cannot have taken {taken.units} {taken.kind} from the "
                    f"{taken.limit} a minute of {taken.account}"
                )

    def compare(self, rates: Iterable[RateRow], now_us: int) -> None:
        """Hold the state of every limit against what is known of it.

        Args:
            rates: As the store has them.
            now_us: The last link's time.

        Raises:
            Differs: At the first that cannot be.
        """
        in_force = {
            place: row for place, row in self._limits.items()
            if place[1] in ("requests", "tokens") and row["amount"] is not None
        }  # fmt: skip
        for account, requests, requests_state, tokens, tokens_state in rates:
            for kind, limit, state in (("requests", requests, requests_state), ("tokens", tokens, tokens_state)):
                row = in_force.pop((account, kind), None)
                due = None if row is None else row["amount"]
                if limit != due:
                    raise Differs(f"account {account} has a rate of {kind} of {limit}, the limits give {due}")
                if row is not None:
                    self._bound(account, kind, row, Rate.of(row["amount"], state or "0"), now_us)
        if in_force:
            account, kind = next(iter(in_force))
            raise Differs(f"the rate of {kind} of account {account} is missing")

    def _bound(self, account: str, kind: str, row: dict[str, Any], rate: Rate, now_us: int) -> None:
        tat, least, most = rate.tat, 0, (now_us + WINDOW_US) * rate.limit
        for (at_us, low), (later_us, higher) in pairwise([(-1, -1), *rate.lows]):
            if not (at_us < later_us <= now_us and low < higher):
                raise Differs(f"the lows of the rate of {kind} of account {account} cannot have come about")
        if kind == "requests":
            least = self._least(account, row, now_us)
        if tat < least or (kind == "requests" and tat > most):
            raise Differs(f"the rate of {kind} of account {account} is at {tat}, not from {least} to {most}")

    def _least(self, account: str, row: dict[str, Any], now_us: int) -> int:
        """What requests that were admitted from any moment on, less those that were voided, took after it."""
        known_us = max(row["at_us"], self.since_us, now_us - WINDOW_US)
        admitted = [*self._open[account], *(at_us for _, at_us, accounts in self._ended if account in accounts)]
        least = 0
        for count, at_us in enumerate(sorted(admitted, reverse=True), 1):
            if at_us <= known_us:
                break
            units = count - sum(ended_us >= at_us for ended_us in self._voided)
            least = max(least, at_us * row["amount"] + units * WINDOW_US)
        return least


def _fitted(hold: Hold, taken: Take) -> bool:
    now, tat = hold.admitted_us * taken.limit, int(taken.tat)
    due = 1 if taken.kind == "requests" else sum(hold.bound[:_TOKENS])
    extended = taken.kind == "tokens" and len(hold.steps) > 1
    right = 0 <= taken.units <= due if extended else taken.units == due
    return right and now + taken.units * WINDOW_US <= tat <= now + taken.limit * WINDOW_US
