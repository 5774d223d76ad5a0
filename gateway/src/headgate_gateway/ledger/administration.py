"""Administrative commands as rules on the state: each checks, changes memory, and adds rows and an audit entry.

May import domain, state and book.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from headgate_gateway.domain import commands as c
from headgate_gateway.domain import limits as gcra
from headgate_gateway.domain import money
from headgate_gateway.domain.budgets import (
    FOREVER,
    WINDOW_KINDS,
    InvalidBudget,
    parse_budget,
    zone,
)
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.domain.money import InvalidAmount, parse_amount
from headgate_gateway.domain.pricing import (
    InvalidPrice,
    PriceSource,
    PriceVersion,
    Quote,
    Terms,
    parse_quote,
)
from headgate_gateway.ledger.book import CREDIT, Account, Budget, Key, Rate
from headgate_gateway.ledger.chain import row_digest
from headgate_gateway.ledger.state import State

_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_SCOPES: Final = frozenset({"inference", "usage", "admin"})
_MOST_PER_MINUTE: Final = 10**12
_PAGE: Final = 1000


class _Invalid(Exception):
    def __init__(self, message: str, field: str | None = None, *, code: str = "invalid") -> None:
        super().__init__(message)
        self.rejected = c.Rejected(code=code, message=message, field=field)  # type: ignore[arg-type]


class Administration:
    """Carries commands out on a state.

    Args:
        state: What they change.
        ids: For projects, organizations and prices that they make.
    """

    def __init__(self, state: State, ids: IdSource) -> None:
        self._state = state
        self._ids = ids
        self._does: dict[type, Callable[[Any, str], c.WireResult]] = {
            c.Create: self._create,
            c.RevokeKey: self._revoke,
            c.ListKeys: self._list_keys,
            c.ListAccounts: self._list_accounts,
            c.GetAccount: self._get_account,
            c.SetBudget: self._set_budget,
            c.SetLimit: self._set_limit,
            c.SetPrice: self._set_price,
            c.ListPrices: self._list_prices,
            c.SyncPrices: self._sync_prices,
            c.GrantCredit: self._grant_credit,
        }

    def run(self, command: c.WireCommand, actor: str) -> c.WireResult:
        """Carry a command out whole, or reject it and change nothing."""
        try:
            return self._does[type(command)](command, actor)
        except _Invalid as error:
            return error.rejected
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
        self._note(
            actor, "key.create", key.id, {"project": project.id, "name": key.name, "budget": command.budget}
        )
        return c.Created(id=key.id, project=project.id, organization=organization.id)

    def _check_key(self, command: c.Create) -> None:
        for field in ("project", "organization"):
            if _NAME.fullmatch(getattr(command, field)) is None:
                raise _Invalid(f"{field} must be 1 to 128 characters without control characters", field)
        if command.name and _NAME.fullmatch(command.name) is None:
            raise _Invalid("name must be at most 128 characters without control characters", "name")
        if unknown := command.scopes - _SCOPES:
            raise _Invalid(f"unknown scopes {sorted(unknown)}; expected {sorted(_SCOPES)}", "scopes")
        for field, least in (("rpm", 1), ("tpm", 1), ("concurrency", 1), ("max_output", 1)):
            _in_range(field, getattr(command, field), least)
        if command.expires_at is not None and not self._state.now_us < command.expires_at < FOREVER:
            raise _Invalid("expires_at must be in the future, in microseconds UTC", "expires_at")
        if not command.id.startswith("key_") or len(command.digest) != 32 or len(command.id) > 64:
            raise _Invalid("id must start with key_ and digest be 32 bytes", "id")
        if command.digest in self._state.digests:
            raise _Invalid("there is such a key already", "digest")
        zone(command.timezone)

    def _revoke(self, command: c.RevokeKey, actor: str) -> c.WireResult:
        state = self._state
        key = state.keys.get(command.id)
        if key is None:
            raise _Invalid(f"there is no key {command.id[:64]!r}", "id", code="not_found")
        if key.revoked_us is not None:
            return c.Done(id=key.id, changed=False)
        key.revoked_us = state.now_us
        state.writes.revoked.append((state.now_us, key.id))
        self._note(actor, "key.revoke", key.id, {})
        return c.Done(id=key.id)

    def _list_keys(self, command: c.ListKeys, _actor: str) -> c.WireResult:
        limit = max(1, min(command.limit, _PAGE))
        wanted = sorted(
            id_
            for id_, key in self._state.keys.items()
            if id_ > command.after and (command.project is None or command.project in _names(key.path[1]))
        )
        page = tuple(self._key_info(self._state.keys[id_]) for id_ in wanted[:limit])
        return c.KeyPage(keys=page, after=wanted[limit - 1] if len(wanted) > limit else None)

    # -- accounts

    def _list_accounts(self, command: c.ListAccounts, _actor: str) -> c.WireResult:
        limit = max(1, min(command.limit, _PAGE))
        wanted = sorted(
            id_
            for id_, account in self._state.accounts.items()
            if id_ > command.after and command.kind in (None, account.kind)
        )
        page = tuple(self._info(self._state.accounts[id_]) for id_ in wanted[:limit])
        return c.AccountPage(accounts=page, after=wanted[limit - 1] if len(wanted) > limit else None)

    def _get_account(self, command: c.GetAccount, _actor: str) -> c.WireResult:
        return c.AccountFound(account=self._info(self._find(command.id)))

    def _set_budget(self, command: c.SetBudget, actor: str) -> c.WireResult:
        account = self._find(command.account)
        if command.window not in WINDOW_KINDS:
            raise _Invalid(f"window must be one of {', '.join(WINDOW_KINDS)}", "window")
        zone(command.timezone)
        amount = None if command.amount is None else parse_amount(command.amount)
        if amount is not None and amount < 0:
            raise _Invalid(f"amount must not be negative, got {command.amount}", "amount")
        self._put_budget(account, command.window, amount, hard=command.hard, timezone=command.timezone)
        self._note(actor, "budget.set", account.id, msgspec.to_builtins(command))
        return c.Done(id=account.id)

    def _set_limit(self, command: c.SetLimit, actor: str) -> c.WireResult:
        account = self._find(command.account)
        _in_range("amount", command.amount, 1)
        self._put_limit(account, command.kind, command.amount)
        self._note(actor, "limit.set", account.id, msgspec.to_builtins(command))
        return c.Done(id=account.id)

    def _grant_credit(self, command: c.GrantCredit, actor: str) -> c.WireResult:
        account = self._find(command.account)
        amount = parse_amount(command.amount)
        present = account.budgets.get(CREDIT)
        total = (present.limit if present else 0) + amount
        if not 0 <= total <= money.MAX:
            raise _Invalid(f"amount {command.amount} would leave less than nothing granted", "amount")
        self._put_budget(account, CREDIT, total, hard=True, timezone="UTC")
        self._note(actor, "credit.grant", account.id, msgspec.to_builtins(command))
        return c.Done(id=account.id)

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
            tat = 0
            if present is not None and amount is not None:
                tat = gcra.rescale(present.tat, present.limit, amount)
            setattr(account, kind, None if amount is None else Rate(amount, tat))
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

    # -- prices

    def _set_price(self, command: c.SetPrice, actor: str) -> c.WireResult:
        if _NAME.fullmatch(command.model) is None:
            raise _Invalid("model must be 1 to 128 characters", "model")
        source: PriceSource = "admin"
        if command.scope:
            account = self._find(command.scope)
            if account.kind == "project":
                raise _Invalid("scope must be a key or an organization", "scope")
            source = "key" if account.kind == "key" else "organization"
        version = self._put_price(command.model, command.rates, source, command.scope)
        self._note(actor, "price.set", command.model, msgspec.to_builtins(command))
        return c.PricesSet(versions=(version,))

    def _list_prices(self, _command: c.ListPrices, _actor: str) -> c.WireResult:
        versions = self._state.prices.values()
        return c.PriceList(prices=tuple(sorted(versions, key=lambda v: (v.model, v.scope, v.source))))

    def _sync_prices(self, command: c.SyncPrices, actor: str) -> c.WireResult:
        state = self._state
        parsed = {model: parse_quote(rates or {}) for model, rates in command.models.items()}
        changed = []
        for model, terms in parsed.items():
            present = state.prices.get(("", model, "config"))
            if terms != (present.terms if present else Terms()):
                changed.append(self._put_price(model, command.models[model], "config", ""))
        if changed:
            self._note(actor, "prices.sync", "", {version.model: version.id for version in changed})
        return c.PricesSet(versions=tuple(changed))

    def _put_price(self, model: str, quoted: Quote | None, source: PriceSource, scope: str) -> PriceVersion:
        state = self._state
        terms = parse_quote(quoted or {})
        version = PriceVersion(
            id=self._ids.price(), model=model, source=source, scope=scope, effective_us=state.now_us,
            rates=terms.rates, tiers=terms.tiers, by=terms.by, minimum=terms.minimum,
        )  # fmt: skip
        row = (version.id, state.batch, model, scope, source, _json(terms), state.now_us)
        state.writes.insert("prices", (*row, row_digest(row)))
        state.versions[version.id] = version
        state.current_price(version)
        return version

    # -- what the above share

    def _find(self, name: str) -> Account:
        if (account := self._state.accounts.get(name)) is not None:
            return account
        found = [a for a in self._state.accounts.values() if a.kind != "key" and a.name == name]
        if len(found) > 1:
            raise _Invalid(f"{name[:64]!r} names {len(found)} accounts; give an id", "account")
        if not found:
            raise _Invalid(f"there is no account {name[:64]!r}", "account", code="not_found")
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

    def _info(self, account: Account) -> c.AccountInfo:
        now = self._state.now_us
        budgets = []
        for budget in account.budgets.values():
            window = budget.window if budget.window is not None and budget.window.end_us > now else None
            budgets.append(
                c.BudgetInfo(
                    kind=budget.kind, limit=budget.limit, hard=budget.hard, timezone=budget.timezone,
                    spent=window.spent if window else 0, held=window.held if window else 0,
                    starts_at=window.start_us if window else now,
                    ends_at=None if window is None or window.end_us == FOREVER else window.end_us,
                )
            )  # fmt: skip
        return c.AccountInfo(
            id=account.id, kind=account.kind, name=account.name,
            parent=account.parent.id if account.parent else None, created_at=account.created_us,
            budgets=tuple(budgets), requests_per_minute=account.requests.limit if account.requests else None,
            tokens_per_minute=account.tokens.limit if account.tokens else None, concurrency=account.concurrency,
            in_flight=account.in_flight,
        )  # fmt: skip

    def _key_info(self, key: Key) -> c.KeyInfo:
        account, project, organization = key.path
        return c.KeyInfo(
            id=key.id, name=key.name, prefix=key.prefix, project=project.name, project_id=project.id,
            organization_id=organization.id, scopes=key.scopes, models=key.models, max_output=key.max_output,
            created_at=key.created_us, expires_at=None if key.expires_us == FOREVER else key.expires_us,
            revoked_at=key.revoked_us, account=self._info(account),
        )  # fmt: skip

    def _note(self, actor: str, action: str, target: str, detail: dict[str, Any]) -> None:
        state = self._state
        state.head.entries += 1
        row = (state.head.entries, state.batch, state.now_us, actor, action, target, _json(detail))
        state.writes.insert("audit_log", (*row, row_digest(row)))


def _names(account: Account) -> tuple[str, str]:
    return account.id, account.name


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _in_range(field: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value <= _MOST_PER_MINUTE:
        raise _Invalid(f"{field} must be from {least} to {_MOST_PER_MINUTE}, got {value}", field)
