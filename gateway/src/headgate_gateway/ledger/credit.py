"""Prepaid credit: grants with a priority and an expiry, and what holds draw from them. May import book, domain.

A grant is a window of its own that begins when it is made and ends when it expires. The kind of its window,
`credit:PRIORITY:ID`, says in which order it burns: lower priorities first, then what expires first, then what
was granted first. An account that was ever granted credit is prepaid: what its requests may cost must be covered
by grants that have not expired. A hold keeps what it drew from which grant, and captures there, in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from headgate_gateway.domain.budgets import FOREVER
from headgate_gateway.ledger.book import CREDIT, Account, Budget, Hold, Part, Window, Writes

MOST_PRIORITY: Final = 9999

MOST_USED_UP: Final = 32
"""Grants of an account that are kept in sight although nothing is left of them."""


def kind_of(priority: int, id_: str) -> str:
    """The kind of a grant's window."""
    return f"{CREDIT}:{priority:04d}:{id_}"


def priority_of(kind: str) -> int:
    """The inverse of `kind_of`."""
    return int(kind.split(":")[1])


def is_grant(budget: Budget) -> bool:
    """Whether what limits an account is credit."""
    return budget.kind.startswith(CREDIT)


def is_prepaid(account: Account) -> bool:
    """Whether an account was ever granted credit."""
    return any(is_grant(budget) for budget in account.budgets.values())


def live(account: Account, now_us: int) -> list[Budget]:
    """An account's grants that have not expired, in the order they burn."""
    found = [
        (priority_of(budget.kind), budget.window.end_us, budget.window.id, budget)
        for budget in account.budgets.values()
        if is_grant(budget) and budget.window is not None and budget.window.end_us > now_us
    ]
    return [grant for *_, grant in sorted(found, key=lambda place: place[:3])]


def purse(account: Account, now_us: int) -> list[Window]:
    """The windows of an account's grants that have not expired, in the order they burn."""
    return [grant.window for grant in live(account, now_us) if grant.window is not None]


def superfluous(account: Account, now_us: int) -> list[str]:
    """Kinds of an account's grants that can be lifted once there is another: whoever tops up often has many."""
    alive = live(account, now_us)
    used_up = sorted(grant.limit_id for grant in alive if grant.window and grant.window.spent == grant.limit)
    kept = {grant.kind for grant in alive if grant.limit_id not in used_up[:-MOST_USED_UP]}
    return [budget.kind for budget in account.budgets.values() if is_grant(budget) and budget.kind not in kept]


def pool(account: str, windows: Iterable[Window]) -> Window:
    """Grants of an account taken together, to be asked for room like any budget."""
    together = Window(0, account, CREDIT, 0, FOREVER, 0, 0, True)
    for window in windows:
        together.limit += window.limit
        together.spent += window.spent
        together.held += window.held
    return together


def drawn(hold: Hold, windows: Mapping[int, Window]) -> dict[str, list[Window]]:
    """The grants that a hold has drawn from, by account."""
    found: dict[str, list[Window]] = {}
    for part in hold.parts:
        if part.amounts is not None:
            window = windows[part.window]
            found.setdefault(window.account, []).append(window)
    return found


def draw(hold: Hold, windows: Iterable[Window], amount: int, writes: Writes) -> None:
    """Hold an amount that fits on the windows taken together, from the first to the last."""
    for window in windows:
        taken = min(window.room, amount)
        if taken <= 0:
            continue
        window.held += taken
        part = next((part for part in hold.parts if part.window == window.id), None)
        if part is None:
            part = Part(window.id, [], [])
            hold.parts.append(part)
        assert part.amounts is not None
        part.amounts.append(taken)
        part.versions.append(window.touch())
        writes.windows[window.id] = window
        amount -= taken
    assert amount <= 0, "more was drawn than there is room for"


def capture(hold: Hold, cost: int, windows: Mapping[int, Window]) -> dict[int, int]:
    """How much of a cost falls on each grant that a hold has drawn from: the first are used up first."""
    left: dict[str, int] = {}
    shares: dict[int, int] = {}
    for part in hold.parts:
        if part.amounts is not None:
            account = windows[part.window].account
            rest = left.get(account, cost)
            shares[part.window] = share = min(rest, sum(part.amounts))
            left[account] = rest - share
    return shares
