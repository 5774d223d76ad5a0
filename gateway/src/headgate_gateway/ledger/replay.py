"""A window's history, folded change by change in the order of its versions. Imports seal.

Changes come in the order in which requests end, with gaps where others are still open; what follows without a gap
is folded into sums, so that an audit keeps only what waits.
"""

from __future__ import annotations

from typing import NamedTuple

from headgate_gateway.ledger.seal import SealedWindow


class Differs(Exception):
    """The first difference between a store's present and its history."""


class Change(NamedTuple):
    """What one version of a window did. Of a `limit`, `held` is its amount and `spent` whether it is hard."""

    what: str
    held: int
    spent: int
    who: str


class Replay:
    """One window: what it has come to at `version`, and changes that wait for one before them.

    Attributes:
        promised: version → (amount, request id) of changes that a seal counted for holds which were open then;
            each must be named again by the record or the hold that it belongs to.
    """

    __slots__ = (
        "account", "end_us", "hard", "held", "id", "kind", "limit", "limit_id", "pending", "promised", "spent",
        "version",
    )  # fmt: skip

    def __init__(self, id_: int) -> None:
        self.id = id_
        self.account = self.kind = ""
        self.limit: int | None = None
        self.hard = True
        self.limit_id = self.end_us = self.version = self.held = self.spent = 0
        self.pending: dict[int, Change] = {}
        self.promised: dict[int, tuple[int, str]] = {}

    @classmethod
    def resumed(cls, sealed: SealedWindow) -> Replay:
        """Where a seal left it."""
        replay = cls(sealed.id)
        replay.opened(sealed.account, sealed.kind, sealed.limit_id, sealed.end_us, sealed.limit, hard=sealed.hard)
        replay.version, replay.held, replay.spent = sealed.version, sealed.held, sealed.spent
        replay.promised = {version: (amount, who) for version, amount, who in sealed.open}
        return replay

    def opened(self, account: str, kind: str, limit_id: int, end_us: int, limit: int, *, hard: bool) -> None:
        """Say under what it began; nothing is folded before that is known."""
        self.account, self.kind, self.limit_id, self.end_us = account, kind, limit_id, end_us
        self.limit, self.hard = limit, hard

    @property
    def name(self) -> str:
        """For people."""
        return f"window {self.id} ({self.kind} of {self.account})" if self.kind else f"window {self.id}"

    def add(self, version: int, change: Change) -> None:
        """Take a change; each version has one."""
        if version > self.version and version not in self.pending:
            self.pending[version] = change
        elif self.promised.get(version) == (change.held, change.who) and change.what == "hold":
            del self.promised[version]
        else:
            before = self.pending.get(version)
            others = f"{before.who} and {change.who}" if before else f"{change.who} and one before it"
            raise Differs(f"change {version} of window {self.id} is claimed by {others}")

    def fold(self) -> None:
        """Apply what follows without a gap."""
        while (change := self.pending.pop(self.version + 1, None)) is not None:
            self.version += 1
            if change.what == "limit":
                self.limit, self.hard = change.held, bool(change.spent)
                continue
            self.held, self.spent = self.held + change.held, self.spent + change.spent
            assert self.limit is not None
            if change.what == "hold" and self.hard and self.held + self.spent > self.limit:
                raise Differs(
                    f"{change.who} was admitted to {self.name} although {self.spent} spent and {self.held} held "
                    f"exceed {self.limit}"
                )
            if self.held < 0 or self.spent < 0:
                raise Differs(f"{self.name} falls below nothing at change {self.version}, {change.who}")

    def compare(
        self, limit: int, spent: int, held: int, version: int, *, hard: bool, cap: int | None = None
    ) -> None:
        """Hold what it came to against what is said of it elsewhere."""
        if self.version < version:
            raise Differs(f"change {self.version + 1} of {self.name} has left no trace")
        if self.version > version or self.pending:
            raise Differs(f"{self.name} has {version} changes, the history {self.version + len(self.pending)}")
        assert self.limit is not None
        for what, said, derived in (
            ("spent", spent, self.spent), ("held", held, self.held), ("limit", limit, self.limit),
            ("hard", hard, self.hard), ("cap", cap, max(self.limit, self.spent + self.held)),
        ):  # fmt: skip
            if said is not None and said != derived:
                raise Differs(f"{self.name} says {what} {said}, its history gives {derived}")

    def sealed(self, open_: list[tuple[int, int, str]]) -> SealedWindow:
        """For a seal, with the changes that belong to open holds."""
        assert self.limit is not None
        return SealedWindow(
            self.id, self.account, self.kind, self.limit_id, self.end_us, self.version, self.limit, self.hard,
            self.held, self.spent, open_,
        )  # fmt: skip

    def agree(self, sealed: SealedWindow) -> None:
        """Check a seal against what it came to, with the changes of holds that were open then counted in."""
        began = (sealed.account, sealed.kind, sealed.limit_id, sealed.end_us)
        if began != (self.account, self.kind, self.limit_id, self.end_us):
            raise Differs(f"{self.name} is {began} there")
        then = Replay(self.id)
        assert self.limit is not None
        then.opened(self.account, self.kind, self.limit_id, self.end_us, self.limit, hard=self.hard)
        then.version, then.held, then.spent = self.version, self.held, self.spent
        then.pending, then.promised = dict(self.pending), dict(self.promised)
        for version, amount, who in sealed.open:
            then.add(version, Change("hold", amount, 0, who))
        then.fold()
        if then.promised:
            raise Differs(f"change {min(then.promised)} of {self.name}, held before, has left no trace")
        then.compare(sealed.limit, sealed.spent, sealed.held, sealed.version, hard=sealed.hard)
