"""Which price is in force when: against the plainest reading of the rule, a scan of all versions."""

from __future__ import annotations

from headgate_gateway.domain.price_book import PriceBook, place_of
from headgate_gateway.domain.pricing import PriceSource, PriceVersion, Rate, Rates
from headgate_gateway.ledger.price_history import PriceHistory
from hypothesis import given
from hypothesis import strategies as st

SOURCES: tuple[PriceSource, ...] = ("key", "organization", "admin", "config", "plugin")
SCOPES = {"key": "key_1", "organization": "org_1"}


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, PriceVersion]]:
    """Versions with the moments at which they were made, never after the one at which they begin."""
    made, found = 0, []
    for n in range(draw(st.integers(0, 12))):
        made += draw(st.integers(0, 3))
        source = draw(st.sampled_from(SOURCES))
        rates: Rates = {"output": Rate(n + 1, 1)} if draw(st.integers(0, 3)) else {}
        version = PriceVersion(
            id=f"prc_{n:02d}", model="m", rates=rates, source=source, scope=SCOPES.get(source, ""),
            effective_us=made + draw(st.integers(0, 5)),
        )  # fmt: skip
        found.append((made, version))
    return found


def scanned(versions: list[PriceVersion], at_us: int) -> str | None:
    """The rule as the page states it."""
    for scope, sources in (
        ("key_1", {"key"}), ("org_1", {"organization"}), ("", {"admin"}), ("", {"config", "plugin"}),
    ):  # fmt: skip
        last = None
        for version in versions:
            here = version.scope == scope and version.source in sources and version.effective_us <= at_us
            if here and (last is None or version.effective_us >= last.effective_us):
                last = version
        if last is not None and last.rates:
            return last.id
    return None


@given(histories())
def test_the_book_the_scan_and_the_audit_agree_at_every_moment(history: list[tuple[int, PriceVersion]]) -> None:
    book, audited = PriceBook(), PriceHistory()
    for _, version in history:
        row = {"id": version.id, "scope": version.scope, "model": "m", "source": version.source}
        audited.add({**row, "rates": '{"rates":{"output":[1,1]}}' if version.rates else "{}",
                     "at_us": version.effective_us})  # fmt: skip
    waiting = list(history)
    for now in range(45):
        book.advance(now)
        known: list[PriceVersion] = [version for made, version in history if made < now]
        found = book.find("key_1", "org_1", "m")
        assert (found and found.id) == scanned(known, now)
        while waiting and waiting[0][0] == now:
            _, version = waiting.pop(0)
            book.add(version)
            book.advance(now)
            known.append(version)
            found = book.find("key_1", "org_1", "m")
            assert (found and found.id) == scanned(known, now)
        due = audited.due("key_1", "org_1", "m", now)
        assert (found and found.id) in due
        if all(version.effective_us != now for _, version in history):
            assert len(due) == 1


@given(histories(), st.integers(0, 45), st.integers(0, 45))
def test_what_is_told_of_the_future_comes_true(
    history: list[tuple[int, PriceVersion]], now: int, later: int
) -> None:
    """Whoever takes what is ahead, as workers do, sees later what the book itself would say."""
    versions = [version for made, version in history if made <= now]
    book = PriceBook(versions)
    book.advance(now)
    copy = PriceBook(book.ahead)
    copy.advance(now)
    for at_us in (now, max(now, later)):
        for version in versions:
            place = place_of(version)
            expected, found = book.at(place, at_us), copy.at(place, at_us)
            assert (expected.rates if expected else {}) == (found.rates if found else {})
        book.advance(at_us)
        copy.advance(at_us)
        here, there = book.find("key_1", "org_1", "m"), copy.find("key_1", "org_1", "m")
        assert (here and here.id) == (there and there.id)


def test_a_plan_that_is_changed_gives_way_to_the_last() -> None:
    first, plan, change = (
        PriceVersion(id=name, model="m", rates={"output": Rate(nano, 1)}, effective_us=at_us)
        for name, at_us, nano in (("a", 0, 1), ("b", 10, 2), ("c", 10, 3))
    )
    book = PriceBook([first, plan, change])
    book.advance(5)
    assert [book.state(one) for one in (first, plan, change)] == ["in_force", "replaced", "coming"]
    assert book.before(change) is first
    assert book.planned(place_of(change)) == [change]
    book.advance(10)
    assert [book.state(one) for one in (first, plan, change)] == ["past", "replaced", "in_force"]
