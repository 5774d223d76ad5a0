"""Administrative commands as rules on the state: each checks, changes memory, and adds rows and an audit entry.

May import domain, state, book and price_changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from headgate_gateway.domain import commands as c
from headgate_gateway.domain import keeping, money
from headgate_gateway.domain import limits as gcra
from headgate_gateway.domain.budgets import (
    FOREVER,
    LATEST_US,
    WINDOW_KINDS,
    InvalidBudget,
    UnknownZone,
    parse_budget,
    zone,
)
from headgate_gateway.domain.erasing import MOST_ERASED, Erased, ErasePersonal
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.domain.money import InvalidAmount, parse_amount
from headgate_gateway.domain.pricing import InvalidPrice
from headgate_gateway.ledger import credit, personal, rows
from headgate_gateway.ledger.book import Account, Budget, Key, Rate, Window
from headgate_gateway.ledger.chain import row_digest
from headgate_gateway.ledger.claims import CLAIM_US
from headgate_gateway.ledger.describing import account_info, key_info
from headgate_gateway.ledger.price_changes import PriceChanges
from headgate_gateway.ledger.refusals import Invalid
from headgate_gateway.ledger.state import State

_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_SCOPES: Final = frozenset({"inference", "usage", "admin"})
_MOST_PER_MINUTE: Final = 10**12
_PAGE: Final = 1000


class Administration:
    """Carries commands out on a state.

    Args:
        state: What they change.
        ids: For projects, organizations and prices that they make.
    """

    def __init__(self, state: State, ids: IdSource) -> None:
        self._state = state
        self._ids = ids
        self._prices = prices = PriceChanges(state, ids, self._find)
        self._does: dict[type, Callable[[Any, str], c.WireResult]] = {
            c.Create: self._create,
            c.RevokeKey: self._revoke,
            c.Rotate: self._rotate,
            c.ListKeys: self._list_keys,
            c.ListAccounts: self._list_accounts,
            c.GetAccount: self._get_account,
            c.CreateAccount: self._create_account,
            c.SetBudget: self._set_budget,
            c.SetLimit: self._set_limit,
            c.SetPrice: prices.set,
            c.CancelPrice: prices.cancel,
            c.ListPrices: prices.page,
            c.SyncPrices: prices.sync,
            c.GrantCredit: self._grant_credit,
            keeping.KeepSeal: self._keep_seal,
            keeping.KeepArchive: self._keep_archive,
            keeping.NoteModel: self._note_model,
            c.MoveCursor: self._move_cursor,
            ErasePersonal: self._erase,
        }

    def run(self, command: c.WireCommand, actor: str) -> c.WireResult:
        """Carry a command out whole, or reject it and change nothing."""
        try:
            return self._does[type(command)](command, actor)
        except Invalid as error:
            return error.rejected
        except UnknownZone as error:
            return c.Rejected(code="invalid", message=str(error), field="timezone")
        except InvalidBudget as error:
            return c.Rejected(code="invalid", message=str(error), field="budget")
        except InvalidAmount as error:
            return c.Rejected(code="invalid", message=str(error), field="amount")
        except InvalidPrice as error:
            return c.Rejected(code="invalid", message=str(error), field="rates")

    # -- keys

    def _create(self, command: c.Create, actor: str) -> c.WireResult:
        state = self._state
        if (known := state.keys.get(command.id)) is not None:
            return c.Created(id=known.id, project=known.path[1].id, organization=known.path[2].id)
        self._check_key(command)
        budget = parse_budget(command.budget) if command.budget is not None else None
        organization = self._account("organization", command.organization, None)
        project = self._account("project", command.project, organization)
        account = self._add_account(command.id, "key", command.name, project)
        expires = FOREVER if command.expires_at is None else command.expires_at
        key = Key(
            command.id, command.digest, command.prefix, command.name, command.scopes, command.models,
            command.max_output, state.now_us, expires, None, (account, project, organization),
        )  # fmt: skip
        state.keys[key.id] = state.digests[key.digest] = key
        state.writes.insert(
            "api_keys",
            (
                key.id, key.digest, key.prefix, _json(sorted(key.scopes)),
                None if key.models is None else _json(sorted(key.models)), key.max_output, expires, None,
            ),
        )  # fmt: skip
        if budget is not None:
            self._put_budget(account, budget[1], budget[0], hard=True, timezone=command.timezone)
        for kind, amount in (
            ("requests", command.rpm), ("tokens", command.tpm), ("concurrency", command.concurrency),
        ):  # fmt: skip
            if amount is not None:
                self._put_limit(account, kind, amount)
        self._state.note(
            actor, "key.create", key.id, {"project": project.id, "name": key.name, "budget": command.budget}
        )
        return c.Created(id=key.id, project=project.id, organization=organization.id)

    def _check_key(self, command: c.Create) -> None:
        for field in ("project", "organization"):
            if _NAME.fullmatch(getattr(command, field)) is None:
                raise Invalid(f"{field} must be 1 to 128 characters without control characters", field)
        if command.name and _NAME.fullmatch(command.name) is None:
            raise Invalid("name must be at most 128 characters without control characters", "name")
        if unknown := command.scopes - _SCOPES:
            raise Invalid(f"unknown scopes {sorted(unknown)}; expected {sorted(_SCOPES)}", "scopes")
        for field, least in (("rpm", 1), ("tpm", 1), ("concurrency", 1), ("max_output", 1)):
            _in_range(field, getattr(command, field), least)
        self._check_expiry(command.expires_at)
        if not command.id.startswith("key_") or len(command.digest) != 32 or len(command.id) > 64:
            raise Invalid("id must start with key_ and digest be 32 bytes", "id")
        if command.digest in self._state.digests:
            raise Invalid("there is such a key already", "digest")
        zone(command.timezone)

    def _check_expiry(self, expires_at: int | None) -> None:
        if expires_at is not None and not self._state.now_us < expires_at < LATEST_US:
            raise Invalid(
                "expires_at must be in the future and before the year 9999, in microseconds UTC", "expires_at"
            )

    def _revoke(self, command: c.RevokeKey, actor: str) -> c.WireResult:
        state = self._state
        key = state.keys.get(command.id)
        if key is None:
            raise Invalid(f"there is no key {command.id[:64]!r}", "id", code="not_found")
        if key.revoked_us is not None and key.revoked_us <= state.now_us:
            return c.Done(id=key.id, changed=False)
        self._end_key(key, state.now_us)
        self._state.note(actor, "key.revoke", key.id, {})
        return c.Done(id=key.id)

    def _end_key(self, key: Key, at_us: int) -> None:
        key.revoked_us = at_us
        self._state.writes.revoked.append((at_us, key.id))

    def _rotate(self, command: c.Rotate, actor: str) -> c.WireResult:
        """Make a key like an old one, and let the old one end."""
        state = self._state
        if (known := state.keys.get(command.successor)) is not None:
            return c.Created(id=known.id, project=known.path[1].id, organization=known.path[2].id)
        old = state.keys.get(command.id)
        if old is None:
            raise Invalid(f"there is no key {command.id[:64]!r}", "id", code="not_found")
        if not state.alive(old):
            raise Invalid(f"{old.id} has ended; make a new key", "id")
        if not 0 <= command.overlap_s <= c.MOST_OVERLAP_S:
            raise Invalid(f"overlap_s must be from 0 to {c.MOST_OVERLAP_S}", "overlap_s")
        account, project, organization = old.path
        expires = None if old.expires_us == FOREVER else old.expires_us
        made = self._create(
            c.Create(
                id=command.successor, digest=command.digest, prefix=command.prefix, project=project.id,
                organization=organization.id, rpm=account.requests.limit if account.requests else None,
                tpm=account.tokens.limit if account.tokens else None, concurrency=account.concurrency,
                models=old.models, scopes=old.scopes, expires_at=expires, max_output=old.max_output,
                name=old.name,
            ),
            actor,
        )  # fmt: skip
        successor = state.accounts[command.successor]
        for budget in account.budgets.values():
            if not credit.is_grant(budget):
                self._put_budget(successor, budget.kind, budget.limit, hard=budget.hard, timezone=budget.timezone)
        self._hand_over_credit(account, successor)
        self._prices.hand_over(old.id, successor.id, actor)
        self._end_key(old, min(old.ends_us, state.now_us + command.overlap_s * 1_000_000))
        self._state.note(actor, "key.rotate", old.id, {"successor": successor.id, "overlap_s": command.overlap_s})
        return made

    def _list_keys(self, command: c.ListKeys, _actor: str) -> c.WireResult:
        limit = max(1, min(command.limit, _PAGE))
        wanted = sorted(
            id_
            for id_, key in self._state.keys.items()
            if id_ > command.after and (command.project is None or command.project in _names(key.path[1]))
        )
        page = tuple(key_info(self._state.keys[id_], self._state.now_us) for id_ in wanted[:limit])
        return c.KeyPage(keys=page, after=wanted[limit - 1] if len(wanted) > limit else None)

    # -- accounts

    def _list_accounts(self, command: c.ListAccounts, _actor: str) -> c.WireResult:
        limit = max(1, min(command.limit, _PAGE))
        wanted = sorted(
            id_
            for id_, account in self._state.accounts.items()
            if id_ > command.after and command.kind in (None, account.kind)
        )
        page = tuple(account_info(self._state.accounts[id_], self._state.now_us) for id_ in wanted[:limit])
        return c.AccountPage(accounts=page, after=wanted[limit - 1] if len(wanted) > limit else None)

    def _get_account(self, command: c.GetAccount, _actor: str) -> c.WireResult:
        return c.AccountFound(account=account_info(self._find(command.id), self._state.now_us))

    def _create_account(self, command: c.CreateAccount, actor: str) -> c.WireResult:
        for field in ("name", "organization"):
            if _NAME.fullmatch(getattr(command, field)) is None:
                raise Invalid(f"{field} must be 1 to 128 characters without control characters", field)
        before = len(self._state.accounts)
        if command.kind == "organization":
            account = self._account("organization", command.name, None)
        else:
            account = self._account(
                "project", command.name, self._account("organization", command.organization, None)
            )  # fmt: skip
        if len(self._state.accounts) > before:
            self._state.note(actor, f"{command.kind}.create", account.id, {"name": account.name})
        return c.AccountFound(account=account_info(account, self._state.now_us))

    def _set_budget(self, command: c.SetBudget, actor: str) -> c.WireResult:
        account = self._find(command.account)
        if command.window not in WINDOW_KINDS:
            raise Invalid(f"window must be one of {', '.join(WINDOW_KINDS)}", "window")
        zone(command.timezone)
        amount = None if command.amount is None else parse_amount(command.amount)
        if amount is not None and amount < 0:
            raise Invalid(f"amount must not be negative, got {command.amount}", "amount")
        if amount is None and command.window not in account.budgets:
            return c.Done(id=account.id, changed=False)
        self._put_budget(account, command.window, amount, hard=command.hard, timezone=command.timezone)
        self._state.note(actor, "budget.set", account.id, msgspec.to_builtins(command))
        return c.Done(id=account.id)

    def _set_limit(self, command: c.SetLimit, actor: str) -> c.WireResult:
        account = self._find(command.account)
        _in_range("amount", command.amount, 1)
        if command.amount is None and getattr(account, command.kind) is None:
            return c.Done(id=account.id, changed=False)
        self._put_limit(account, command.kind, command.amount)
        self._state.note(actor, "limit.set", account.id, msgspec.to_builtins(command))
        return c.Done(id=account.id)

    def _grant_credit(self, command: c.GrantCredit, actor: str) -> c.WireResult:
        account = self._find(command.account)
        amount = parse_amount(command.amount)
        if not 0 <= command.priority <= credit.MOST_PRIORITY:
            raise Invalid(
                f"priority must be from 0 to {credit.MOST_PRIORITY}, got {command.priority}", "priority"
            )
        self._check_expiry(command.expires_at)
        if not amount:
            return c.Done(id=account.id, changed=False)
        if amount > 0:
            self._put_grant(account, amount, command.priority, command.expires_at or FOREVER)
        else:
            self._take_back(account, -amount)
        self._state.note(actor, "credit.grant", account.id, msgspec.to_builtins(command))
        return c.Done(id=account.id)

    def _put_grant(self, account: Account, amount: int, priority: int, expires_us: int) -> None:
        state = self._state
        present = credit.pool(account.id, credit.purse(account, state.now_us))
        if present.limit + amount > money.MAX:
            raise Invalid("amount would bring the credit above what can be counted", "amount")
        for superfluous in credit.superfluous(account, state.now_us):
            del account.budgets[superfluous]
            self._limit_row(account, superfluous, None, True, "UTC", None, None)
        kind = credit.kind_of(priority, self._ids.new("grt"))
        self._limit_row(account, kind, amount, True, "UTC", None, None)
        state.head.windows += 1
        window = Window(
            state.head.windows, account.id, kind, state.now_us, expires_us, state.head.limits, amount, True,
            cap=amount,
        )  # fmt: skip
        state.windows[window.id] = state.writes.windows[window.id] = window
        state.writes.opened.add(window.id)
        account.budgets[kind] = Budget(kind, window.limit_id, amount, True, "UTC", window)

    def _take_back(self, account: Account, amount: int) -> None:
        """Lower grants, the last to burn first, by what is neither spent nor held."""
        state = self._state
        present = credit.pool(account.id, credit.purse(account, state.now_us))
        if amount > present.room:
            text = money.format_amount(present.room)
            raise Invalid(f"only {text} of the credit is neither spent nor held", "amount")
        for grant in reversed(credit.live(account, state.now_us)):
            window = grant.window
            assert window is not None
            taken = min(amount, window.room)
            if taken > 0:
                self._lower(account, grant, window, taken)
                amount -= taken

    def _lower(self, account: Account, grant: Budget, window: Window, amount: int) -> None:
        window.limit -= amount
        grant.limit = window.limit
        self._state.writes.windows[window.id] = window
        self._limit_row(account, grant.kind, grant.limit, True, "UTC", window.id, window.touch())
        grant.limit_id = self._state.head.limits

    def _hand_over_credit(self, account: Account, successor: Account) -> None:
        """What is neither spent nor held of a key's own credit is its successor's; which is prepaid as well."""
        for grant in credit.live(account, self._state.now_us):
            window = grant.window
            assert window is not None
            if (left := window.room) > 0:
                self._lower(account, grant, window, left)
                self._put_grant(successor, left, credit.priority_of(grant.kind), window.end_us)
        if credit.is_prepaid(account) and not credit.is_prepaid(successor):
            self._put_grant(successor, 0, credit.MOST_PRIORITY, FOREVER)

    def _put_budget(self, account: Account, kind: str, amount: int | None, *, hard: bool, timezone: str) -> None:
        """Put a budget in force; a window that is open goes on under the new limit, at a version of its own."""
        state = self._state
        present = account.budgets.get(kind)
        window = present.window if present is not None else None
        if window is not None and window.end_us <= state.now_us:
            window = None
        version = None
        if amount is None:
            account.budgets.pop(kind, None)
        else:
            if window is not None:
                window.limit, window.hard = amount, hard
                version = window.touch()
                state.writes.windows[window.id] = window
            account.budgets[kind] = Budget(kind, state.head.limits + 1, amount, hard, timezone, window)
        self._limit_row(account, kind, amount, hard, timezone, None if window is None else window.id, version)

    def _put_limit(self, account: Account, kind: str, amount: int | None) -> None:
        if kind == "concurrency":
            account.concurrency = amount
        else:
            present: Rate | None = getattr(account, kind)
            rate = None if amount is None else Rate(amount)
            if present is not None and rate is not None:
                rate.tat = gcra.rescale(present.tat, present.limit, rate.limit)
                rate.lows = [(self._state.now_us, 0)]  # what was taken under another limit is not given back
            setattr(account, kind, rate)
            self._state.writes.rates[account.id] = account
        self._limit_row(account, kind, amount, True, "UTC", None, None)

    def _limit_row(
        self, account: Account, kind: str, amount: int | None, hard: bool, timezone: str,
        window: int | None, version: int | None,
    ) -> None:  # fmt: skip
        state = self._state
        state.head.limits += 1
        row = (
            state.head.limits, state.batch, account.id, kind, amount, int(hard), timezone, state.now_us, window,
            version,
        )  # fmt: skip
        state.writes.insert("limits", (*row, row_digest(row)))

    # -- models, personal fields, seals

    def _note_model(self, command: keeping.NoteModel, actor: str) -> c.WireResult:
        detail = {"failed": command.failed} if command.failed else {}
        self._state.note(actor, f"model.{command.action}", command.model, detail)
        return c.Done(id=command.model)

    def _erase(self, command: ErasePersonal, actor: str) -> c.WireResult:
        if len(command.requests) > MOST_ERASED:
            raise Invalid(f"requests must be at most {MOST_ERASED}", "requests")
        rows = self._state.erase(command.requests)
        if rows:
            chosen = {"tags": command.tags, "project": command.project, "before": command.before}
            detail = {"rows": rows, **{name: value for name, value in chosen.items() if value}}
            self._state.note(actor, personal.ERASURE, command.project or "", detail)
        return Erased(rows=rows)

    def _move_cursor(self, command: c.MoveCursor, actor: str) -> c.WireResult:
        if _NAME.fullmatch(command.consumer) is None:
            raise Invalid("consumer must be 1 to 128 characters without control characters", "consumer")
        if command.position is not None and not 0 <= command.position <= c.FARTHEST:
            raise Invalid(f"position must be from 0 to {c.FARTHEST}", "position")
        self._state.writes.cursors[command.consumer] = (command.position, self._state.now_us)
        action = "consumer.remove" if command.position is None else "consumer.reset"
        detail = {} if command.position is None else {"position": command.position}
        self._state.note(actor, action, command.consumer, detail)
        return c.Done(id=command.consumer)

    def _keep_seal(self, command: keeping.KeepSeal, _actor: str) -> c.WireResult:
        state = self._state
        _in_range("seal", command.seal, 1)
        _in_range("parts", command.parts, command.part + 1)
        if command.part < 0 or len(command.mac) != 32:
            raise Invalid("part must not be negative, and mac be 32 bytes", "part")
        row = (
            state.batch, command.seal, command.part, command.parts, state.now_us, command.body, command.mac,
        )  # fmt: skip
        state.writes.insert("seals", (*row, row_digest(row)))
        return c.Done(id=str(command.seal))

    def _keep_archive(self, command: keeping.KeepArchive, actor: str) -> c.WireResult:
        state = self._state
        _in_range("seal", command.seal, 1)
        if command.until_us > state.now_us - CLAIM_US:
            raise Invalid("idempotency keys that live may still need it", "until_us")
        if len(command.hash) != 32 or not 0 < len(command.file) <= 4096 or "\0" in command.file:
            raise Invalid("file must be a path of at most 4096 characters, and hash be 32 bytes", "file")
        for left in command.left:
            row = rows.Archive(
                state.batch, command.seal, left.chain, left.until, command.until_us, command.file, command.hash,
                command.size, left.count, state.now_us,
            )  # fmt: skip
            state.writes.insert("archives", (*row, row_digest(row)))
        count = sum(left.count for left in command.left)
        state.note(actor, "archive.keep", str(command.seal), {"file": command.file, "rows": count})
        return c.Done(id=str(command.seal))

    # -- what the above share

    def _find(self, name: str) -> Account:
        if (account := self._state.accounts.get(name)) is not None:
            return account
        found = [a for a in self._state.accounts.values() if a.kind != "key" and a.name == name]
        if len(found) > 1:
            raise Invalid(f"{name[:64]!r} names {len(found)} accounts; give an id", "account")
        if not found:
            raise Invalid(f"there is no account {name[:64]!r}", "account", code="not_found")
        return found[0]

    def _account(self, kind: c.AccountKind, name: str, parent: Account | None) -> Account:
        """The organization or project of a name or id, made when it is missing."""
        for account in self._state.accounts.values():
            if account.kind == kind and name in _names(account) and account.parent is parent:
                return account
        make = self._ids.organization if kind == "organization" else self._ids.project
        return self._add_account(make(), kind, name, parent)

    def _add_account(self, id_: str, kind: c.AccountKind, name: str, parent: Account | None) -> Account:
        state = self._state
        account = state.accounts[id_] = Account(id_, kind, name, parent, state.now_us)
        state.writes.insert("accounts", (id_, kind, name, parent.id if parent else None, state.now_us))
        return account


def _names(account: Account) -> tuple[str, str]:
    return account.id, account.name


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _in_range(field: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value <= _MOST_PER_MINUTE:
        raise Invalid(f"{field} must be from {least} to {_MOST_PER_MINUTE}, got {value}", field)
