"""Limits per minute and in flight, as admissions take from them and ends give back. May import domain, book."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from headgate_gateway.domain import limits
from headgate_gateway.domain.admission import LimitState
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.book import Account, Hold, Rate, Take, Writes
from headgate_gateway.ledger.refusals import RETRY_ESTIMATE_MS, denied

_OUTPUT: Final = 3
"""Place of `output` among the dimensions."""

_TOKENS: Final = 5
"""How many of the first dimensions count as tokens."""


def take(op: wire.Admit, path: Iterable[Account], output: int, now_us: int) -> list[Take] | wire.Denied:
    """What an admission takes from the limits of its accounts, or the limit that is longest in the way."""
    takes: list[Take] = []
    refused: tuple[Account, str, int, int] | None = None
    tokens = sum(op.bound[:_TOKENS]) - op.bound[_OUTPUT] + output
    for account in path:
        if account.concurrency is not None and account.in_flight >= account.concurrency:
            return _busy(op, account)
        if account.requests is None and account.tokens is None:
            continue
        for kind, rate, units in (("requests", account.requests, 1), ("tokens", account.tokens, tokens)):
            if rate is None:
                continue
            tat, wait = limits.take(rate.tat, rate.limit, units, now_us)
            if wait is not None and (refused is None or wait < 0 or wait > refused[3] >= 0):
                refused = (account, kind, rate.limit, wait)
            takes.append(Take(account.id, kind, rate.limit, units, str(tat)))
    if refused is None:
        return takes
    account, kind, limit, wait = refused
    return denied(
        op.n, "rate_limit_exceeded",
        f"the {account.kind} may use {limit} {kind} per minute"
        + ("; this request alone is more" if wait < 0 else ""),
        scope=f"{account.kind}:{kind}", limit=limit,
        retry_after_ms=None if wait < 0 else -(-wait // 1000),
    )  # fmt: skip


def _busy(op: wire.Admit, account: Account) -> wire.Denied:
    return denied(
        op.n, "rate_limit_exceeded", f"the {account.kind} may have {account.concurrency} requests in flight",
        scope=f"{account.kind}:concurrency", limit=account.concurrency, held=account.in_flight,
        retry_after_ms=RETRY_ESTIMATE_MS,
    )  # fmt: skip


def states(path: Iterable[Account], now_us: int) -> tuple[LimitState, ...]:
    """The limits per minute of accounts, as headers show them."""
    found: list[LimitState] = []
    for account in path:
        for kind, rate in (("requests", account.requests), ("tokens", account.tokens)):
            if rate is not None:
                found.append(
                    LimitState(
                        kind=kind,  # type: ignore[arg-type]
                        scope=account.kind,
                        limit=rate.limit,
                        remaining=limits.remaining(rate.tat, rate.limit, now_us),
                        reset_ms=-(-limits.reset_us(rate.tat, rate.limit, now_us) // 1000),
                    )
                )
    return tuple(found)


def taken(hold: Hold, accounts: Mapping[str, Account], writes: Writes) -> None:
    """Let an admitted request have what it takes."""
    for one in hold.takes:
        account = accounts[one.account]
        rate = account.requests if one.kind == "requests" else account.tokens
        assert rate is not None
        if account.in_flight:
            limits.note_low(rate.lows, rate.tat, rate.limit, hold.admitted_us)
        else:
            rate.lows.clear()  # only who is in flight gives back
        rate.tat = int(one.tat)
        writes.rates[account.id] = account


def refund(hold: Hold, used: int | None, accounts: Mapping[str, Account], now_us: int, writes: Writes) -> None:
    """Give back what was not used: of tokens the unused ones, and of a void everything."""
    for taken in hold.takes:
        account = accounts[taken.account]
        rate: Rate | None = account.requests if taken.kind == "requests" else account.tokens
        if rate is None or rate.limit != taken.limit:
            continue
        if used is None:
            unused = taken.units
        elif taken.kind == "tokens":
            unused = taken.units - used
        else:
            continue
        if unused > 0:
            rate.tat = limits.refund(rate.tat, rate.lows, rate.limit, unused, hold.admitted_us, now_us)
        elif unused < 0:
            limits.note_low(rate.lows, rate.tat, rate.limit, now_us)
            rate.tat = max(rate.tat, now_us * rate.limit) - unused * limits.WINDOW_US
        writes.rates[account.id] = account
