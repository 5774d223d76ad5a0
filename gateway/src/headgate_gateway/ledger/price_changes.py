"""Commands on prices: each makes versions, and none changes or removes one. May import domain, state, refusals.

What somebody plans is a version like any other, that begins later. Who changes or drops a plan makes one more
version that begins at the same moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from headgate_gateway.domain import commands as c
from headgate_gateway.domain.budgets import LATEST_US
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.domain.margins import margin_of, with_margin
from headgate_gateway.domain.money import InvalidAmount
from headgate_gateway.domain.price_book import MOST_PLANNED, Place, place_of
from headgate_gateway.domain.pricing import (
    InvalidPrice,
    PriceSource,
    PriceVersion,
    Quote,
    Terms,
    parse_quote,
)
from headgate_gateway.ledger.book import Account
from headgate_gateway.ledger.chain import row_digest
from headgate_gateway.ledger.refusals import Invalid
from headgate_gateway.ledger.state import State

_PAGE: Final = 1000

Find = Callable[[str], Account]


class PriceChanges:
    """Carries commands on prices out on a state.

    Args:
        state: What they change.
        ids: For the versions that they make.
        find: The account of an id or name.
    """

    def __init__(self, state: State, ids: IdSource, find: Find) -> None:
        self._state = state
        self._ids = ids
        self._find = find

    def set(self, command: c.SetPrice, actor: str) -> c.WireResult:
        """Make a version, for now or for later."""
        if not 1 <= len(command.model) <= 128 or not command.model.isprintable():
            raise Invalid("model must be 1 to 128 characters", "model")
        source, scope = self._whose(command.scope)
        begins = self._begins(command.effective_from, (scope, command.model, "set"))
        place: Place = (scope, command.model, "set")
        try:
            margin = margin_of(command.rates)
            terms = self._on_base(place, margin, begins) if margin is not None else _terms(command.rates)
        except InvalidAmount as error:
            raise InvalidPrice(str(error)) from None
        if margin is not None and not terms.rates:
            raise Invalid(f"{command.model} has no price that a margin could be on then", "rates")
        made = [self._put(command.model, terms, source, scope, begins), *self._follow(command.model)]
        self._state.note(actor, "price.set", command.model, _noted(command, made))
        return c.PricesSet(versions=tuple(made))

    def cancel(self, command: c.CancelPrice, actor: str) -> c.WireResult:
        """Let a planned version not begin: one more begins at its moment, and says what was said before."""
        book = self._state.prices
        version = book.versions.get(command.id)
        if version is None:
            raise Invalid(f"there is no price {command.id[:64]!r}", "id", code="not_found")
        if book.state(version) != "coming":
            reason = "has begun" if version.effective_us <= self._state.now_us else "was changed already"
            raise Invalid(f"{version.id} {reason}: history stays as it is; set another price", "id")
        before = book.before(version)
        terms = before.terms if before is not None else Terms()
        made = [
            self._put(version.model, terms, version.source, version.scope, version.effective_us),
            *self._follow(version.model),
        ]
        self._state.note(actor, "price.cancel", version.id, _noted(command, made))
        return c.PricesSet(versions=tuple(made))

    def page(self, command: c.ListPrices, _actor: str) -> c.WireResult:
        """A page of versions, in the order of their ids."""
        book = self._state.prices
        found = book.versions.values() if command.history else book.current
        limit = max(1, min(command.limit, _PAGE))
        wanted = sorted(
            (one for one in found if one.id > command.after and command.model in (None, one.model)),
            key=lambda version: version.id,
        )
        page = tuple(c.PriceInfo(version=version, state=book.state(version)) for version in wanted[:limit])
        return c.PriceList(prices=page, after=page[-1].version.id if len(wanted) > limit else None)

    def sync(self, command: c.SyncPrices, actor: str) -> c.WireResult:
        """Take what the config and plugins say; what did not change keeps its version."""
        state = self._state
        parsed = {model: parse_quote(rates or {}) for model, rates in command.models.items()}
        differing = [model for model, terms in parsed.items() if self._differs(model, terms, command)]
        if command.only_new and (taken := [model for model in differing if self._was_priced(model)]):
            raise Invalid(
                f"the config's price of {taken[0]!r} is not the one in the store; change the config, or make its "
                "prices the store's with `headgate prices apply`",
                "price",
            )
        made: list[PriceVersion] = []
        for model in differing:
            source: PriceSource = "plugin" if model in command.defaults else "config"
            made += [self._put(model, parsed[model], source, "", state.now_us), *self._follow(model)]
        if made:
            self._state.note(actor, "prices.sync", "", {"versions": [version.id for version in made]})
        return c.PricesSet(versions=tuple(made))

    def hand_over(self, key: str, successor: str, actor: str) -> None:
        """Have a key's successor pay what the key pays, now and as it is planned."""
        now_us = self._state.now_us
        for version in [found for found in self._state.prices.current if found.scope == key]:
            begins = max(version.effective_us, now_us)
            made = self._put(version.model, version.terms, version.source, successor, begins)
            detail = {"scope": successor, "of": version.id, "versions": [made.id]}
            self._state.note(actor, "price.set", version.model, detail)

    def _differs(self, model: str, terms: Terms, command: c.SyncPrices) -> bool:
        present = self._state.prices.at(("", model, "default"), self._state.now_us)
        if present is None or not terms.rates:
            return terms != (present.terms if present else Terms())
        return terms != present.terms or (present.source == "plugin") != (model in command.defaults)

    def _was_priced(self, model: str) -> bool:
        """Whether a config or plugin has ever priced a model."""
        versions = self._state.prices.versions.values()
        return any(version.model == model and place_of(version)[2] == "default" for version in versions)

    def _whose(self, name: str) -> tuple[PriceSource, str]:
        if not name:
            return "admin", ""
        account = self._find(name)
        if account.kind == "project":
            raise Invalid("scope must be a key or an organization", "scope")
        return ("key" if account.kind == "key" else "organization"), account.id

    def _begins(self, effective_from: int | None, place: Place) -> int:
        state = self._state
        if effective_from is None:
            return state.now_us
        if not state.now_us <= effective_from < LATEST_US:
            raise Invalid(
                "effective_from must not lie in the past, because what was charged stays as it is, and be before "
                "the year 9999",
                "effective_from",
            )
        planned = {version.effective_us for version in state.prices.planned(place)}
        if effective_from not in planned and len(planned) >= MOST_PLANNED:
            raise Invalid(f"{MOST_PLANNED} prices are planned there already", "effective_from")
        return effective_from

    # -- margins

    def _follow(self, model: str) -> list[PriceVersion]:
        """Make anew what is a margin on a price that changed, for every moment from now on that it changes at.

        Raises:
            ValueError: A margin cannot follow. The price beneath is changed already: the batch is to be undone.
        """
        book = self._state.prices
        made: list[PriceVersion] = []
        for place in book.places(model):
            for at_us in book.moments(model, self._state.now_us):
                own = book.at(place, at_us)
                if own is None or own.margin is None:
                    continue
                try:
                    terms = self._on_base(place, own.margin, at_us)
                except InvalidPrice as error:
                    raise ValueError(f"{error}, for {place[0] or 'everyone'}") from error
                if terms != own.terms:
                    made.append(self._put(model, terms, own.source, own.scope, at_us))
        return made

    def _on_base(self, place: Place, margin: int, at_us: int) -> Terms:
        """A margin on what everyone pays at a moment; what everyone pays may itself be one on the default."""
        _, model, _ = place
        beneath: list[Place] = [("", model, "set"), ("", model, "default")]
        for base in beneath[beneath.index(place) + 1 :] if place in beneath else beneath:
            found = self._state.prices.at(base, at_us)
            if found is not None and found.rates:
                return with_margin(found.terms, margin)
        return Terms(margin=margin)

    def _put(self, model: str, terms: Terms, source: PriceSource, scope: str, begins_us: int) -> PriceVersion:
        state = self._state
        version = PriceVersion(
            id=self._ids.price(), model=model, source=source, scope=scope, effective_us=begins_us,
            **msgspec.structs.asdict(terms),
        )  # fmt: skip
        row = (
            version.id, state.batch, model, scope, source, msgspec.json.encode(terms).decode(), begins_us,
        )  # fmt: skip
        state.writes.insert("prices", (*row, row_digest(row)))
        state.prices.add(version)
        state.prices.advance(state.now_us)
        return version


def _terms(quoted: Quote | None) -> Terms:
    return parse_quote(quoted or {})


def _noted(command: c.SetPrice | c.CancelPrice, made: list[PriceVersion]) -> dict[str, Any]:
    return {**msgspec.to_builtins(command), "versions": [version.id for version in made]}
