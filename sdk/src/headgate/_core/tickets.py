"""One call's bookkeeping: its ticket in the scopes around it, and the journal of a client's last calls. Pure.

A call opens a `Ticket` and settles it exactly once. Imports the core's forks, money, prices and metering.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from headgate._core.forks import inherited
from headgate._core.metering import Budget, Meter
from headgate._core.money import Cost
from headgate._core.prices import Upper
from headgate.errors import BudgetExceeded

if TYPE_CHECKING:
    from headgate.types.shared import Usage


class Journal:
    """The last calls of a client, for `usage.reconcile` and to see a replay for what it is. Bounded.

    Attributes:
        forgotten: How many calls it had to let go.
    """

    def __init__(self, size: int = 10_000) -> None:
        self.forgotten = 0
        self._size = size
        self._rows: OrderedDict[str, tuple[str | None, int | None]] = OrderedDict()
        self._keys: OrderedDict[str, None] = OrderedDict()
        self.forked()
        inherited(self)

    def forked(self) -> None:
        """A forked child writes its own from here on."""
        self._lock = threading.Lock()

    def note(self, request_id: str | None, model: str | None, nano: int | None) -> None:
        """Remember a call by its request id; what is known of its cost is not forgotten again."""
        if request_id is None:
            return
        with self._lock:
            known = self._rows.get(request_id)
            if known is None or known[1] is None:
                self._rows[request_id] = (model, nano)
            if len(self._rows) > self._size:
                self._rows.popitem(last=False)
                self.forgotten += 1

    def is_first(self, key: str | None) -> bool:
        """Whether this is the first answer that the client has to a key: a replay costs only once."""
        if key is None:
            return True
        with self._lock:
            first = key not in self._keys
            self._keys[key] = None
            if len(self._keys) > self._size:
                self._keys.popitem(last=False)
            return first

    def rows(self) -> dict[str, tuple[str | None, int | None]]:
        """A copy, by request id."""
        with self._lock:
            return dict(self._rows)


class Ticket:
    """One call's place in the scopes around it and in the client's journal. Settled at most once."""

    __slots__ = ("_journal", "_key", "_most", "_open", "_scopes", "_so_far", "model", "tags")

    def __init__(
        self,
        journal: Journal,
        scopes: tuple[Meter, ...],
        model: str | None,
        tags: Mapping[str, str] | None,
        key: str | None,
    ) -> None:
        self._journal = journal
        self._key = key
        self._scopes = scopes
        self._most: Upper | None = None
        self._so_far: Upper | None = None
        self._open = True
        self.model = model
        self.tags = tags or {}

    @property
    def budgeted(self) -> bool:
        """Whether any budget stands around the call."""
        return any(isinstance(scope, Budget) for scope in self._scopes)

    def reserve(self, most: Upper) -> None:
        """Hold the upper bound in every budget, or in none.

        Raises:
            BudgetExceeded: It does not fit into one of them.
        """
        held: list[Budget] = []
        for scope in self._scopes:
            if isinstance(scope, Budget):
                try:
                    scope.reserve(most, self.model)
                except BudgetExceeded:
                    for earlier in held:
                        earlier.release(most)
                    raise
                held.append(scope)
        self._most = most

    def overruns(self, text_bytes: int, chunks: int) -> BudgetExceeded | None:
        """The refusal, if what a stream has made so far crosses a budget; tokens are estimated."""
        most = self._most
        if most is None:
            return None
        tokens = max(chunks, text_bytes // 4)
        nano = 0 if most.price is None else most.price.cost(most.tokens_in // 4, tokens)
        so_far = self._so_far = Upper(most.tokens_in // 4 + tokens, nano, most.price, most.tokens_in)
        for scope in self._scopes:
            if isinstance(scope, Budget) and scope.crossed_by(most, nano, so_far.tokens):
                return BudgetExceeded(
                    "the stream was cut: it would have crossed its budget",
                    limit=None if scope.max_nano is None else Cost(scope.max_nano),
                    spent=scope.cost,
                    needed=Cost(nano, settled=False),
                )
        return None

    def settle(
        self,
        *,
        usage: Usage | None,
        nano: int | None,
        request_id: str | None,
        replayed: bool = False,
        failed: bool = False,
    ) -> None:
        """Book the call's end and give back what it held.

        A stream that ends before its bill has come was not for nothing: its estimate stays held.
        """
        if not self._open:
            return
        self._open = False
        self._journal.note(request_id, self.model, nano)
        if not failed:
            # An answer replayed to a retry is the first that this client sees of its cost; to a repeated call,
            # it is the second, and free.
            replayed = not self._journal.is_first(self._key) and replayed
        held, used = self._most, self._so_far
        if held is not None and used is not None and nano is None:
            held = Upper(held.tokens - used.tokens, (held.nano or 0) - (used.nano or 0), None, 0)
        for scope in self._scopes:
            scope.book(
                self.model or "",
                {**scope.tags, **self.tags},
                usage=usage,
                nano=nano,
                replayed=replayed,
                failed=failed,
                held=held,
            )
