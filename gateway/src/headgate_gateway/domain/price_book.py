"""Which price version is in force for whom, now and later. May import pricing.

A *place* is what a version is for: a key, an organization or everyone, one model, and whether somebody set it or
it came with the config or a plugin. In each place the version in force is the one that begins last among those
that have begun; of two that begin at the same moment, the one that was made later. So nothing is ever updated:
what is planned is changed by one more version that begins at the same moment.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from headgate_gateway.domain.pricing import PriceVersion

Place = tuple[str, str, Literal["set", "default"]]
"""Scope (empty for everyone), model, and `set` by somebody or the `default` of config and plugins."""

PriceState = Literal["in_force", "coming", "past", "replaced"]
"""`past` is what was in force and what withdrew a price; `replaced` what was changed before it began."""

MOST_PLANNED: Final = 16
"""Versions that may wait for their time in one place."""

_NEVER: Final = 2**63


def place_of(version: PriceVersion) -> Place:
    """What a version is for."""
    return version.scope, version.model, "default" if version.source in ("config", "plugin") else "set"


class PriceBook:
    """Price versions, and which of them are in force at a moment that only moves forward.

    Args:
        versions: In the order in which they were made.

    Attributes:
        versions: All, by id.
        begun_us: When the last of those began that have; nobody may ask about a moment before.
    """

    def __init__(self, versions: Iterable[PriceVersion] = ()) -> None:
        self.versions: dict[str, PriceVersion] = {}
        self.begun_us = 0
        self._begun: dict[Place, PriceVersion] = {}
        self._priced: dict[Place, PriceVersion] = {}
        self._coming: list[PriceVersion] = []
        self._replaced: set[str] = set()
        self._next_us = _NEVER
        for version in versions:
            self.add(version)

    def add(self, version: PriceVersion) -> None:
        """Take in a version, made after all others, that `advance` lets begin; a known one changes nothing."""
        if version.id in self.versions:
            return
        place = place_of(version)
        self.versions[version.id] = version
        for planned in self.planned(place):
            if planned.effective_us == version.effective_us:
                self._coming.remove(planned)
                self._replaced.add(planned.id)
        insort(self._coming, version, key=_begins)
        self._next_us = self._coming[0].effective_us

    def advance(self, now_us: int) -> None:
        """Let begin what begins up to now."""
        if now_us < self._next_us:
            return
        coming = self._coming
        begun = next((n for n, version in enumerate(coming) if version.effective_us > now_us), len(coming))
        for version in coming[:begun]:
            place = place_of(version)
            present = self._begun.get(place)
            if present is not None and present.effective_us > version.effective_us:
                continue  # it was heard of late
            self._begun[place] = version
            if version.rates:
                self._priced[place] = version
            else:
                self._priced.pop(place, None)
        if begun:
            self.begun_us = max(self.begun_us, coming[begun - 1].effective_us)
        del coming[:begun]
        self._next_us = coming[0].effective_us if coming else _NEVER

    def find(self, key: str, organization: str, model: str) -> PriceVersion | None:
        """The price in force: the key's own, its organization's, the one set for everyone, the default."""
        prices = self._priced
        return (
            prices.get((key, model, "set"))
            or prices.get((organization, model, "set"))
            or prices.get(("", model, "set"))
            or prices.get(("", model, "default"))
        )

    def at(self, place: Place, at_us: int) -> PriceVersion | None:
        """The version in a place, a withdrawal included, at a moment that is not over."""
        found = self._begun.get(place)
        for version in self._coming:
            if version.effective_us <= at_us and place_of(version) == place:
                found = version
        return found

    def before(self, version: PriceVersion) -> PriceVersion | None:
        """What a version that has not begun will follow in its place."""
        return self.at(place_of(version), version.effective_us - 1)

    def planned(self, place: Place) -> list[PriceVersion]:
        """What has not begun in a place, by time."""
        return [version for version in self._coming if place_of(version) == place]

    def places(self, model: str) -> list[Place]:
        """Where a model has or will have a price: the default first, then everyone's, then those of accounts."""
        known = (*self._begun.values(), *self._coming)
        found = {place_of(version) for version in known if version.model == model}
        return sorted(found, key=lambda place: (place[0], place[2]))

    def moments(self, model: str, now_us: int) -> list[int]:
        """Now, and when a price of a model will change."""
        return sorted({now_us, *(version.effective_us for version in self._coming if version.model == model)})

    @property
    def current(self) -> list[PriceVersion]:
        """What is in force and what is planned."""
        return [*self._priced.values(), *self._coming]

    @property
    def ahead(self) -> list[PriceVersion]:
        """What is `current`, for somebody who only looks forward, by a clock of its own: what is in force is told
        as if it had always been.
        """
        begun = [msgspec.structs.replace(version, effective_us=0) for version in self._priced.values()]
        return [*begun, *self._coming]

    def state(self, version: PriceVersion) -> PriceState:
        """Whether a version is in force, coming, past or replaced."""
        if self._priced.get(place_of(version)) is version:
            return "in_force"
        if version.id in self._replaced:
            return "replaced"
        return "coming" if version in self._coming else "past"


def _begins(version: PriceVersion) -> int:
    return version.effective_us
