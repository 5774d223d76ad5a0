"""The suite for plugins that take usage records. May import the plugin API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headgate_plugin_api.records import Attempt, UsageRecord
from headgate_plugin_api.usage import Usage

SLICE = 500
"""Records that a call is given at most."""


@dataclass(frozen=True, kw_only=True)
class ConsumerCase:
    """A consumer, and how to look at what it has kept.

    Attributes:
        take: The hook, `headgate_usage_recorded`.
        kept: The request ids of the records that are kept by now, in any order, each as often as it is kept. It
            must look where they are kept, not at what `take` remembers.
    """

    take: Callable[[Sequence[UsageRecord]], object]
    kept: Callable[[], Sequence[str]]


class ConsumerConformance:
    """Records come at least once, in slices whose bounds mean nothing: what is kept must be each of them once.

    Define a fixture `consumer_case` that returns a fresh `ConsumerCase`.
    """

    def test_a_slice_is_kept_when_the_call_returns(self, consumer_case: ConsumerCase) -> None:
        """Whole, at once: the cursor goes on then, and nothing of it comes again."""
        records = [_record(number) for number in range(1, SLICE + 1)]
        consumer_case.take(records)
        _are_kept(consumer_case, records)

    def test_a_slice_that_comes_again_is_not_kept_again(self, consumer_case: ConsumerCase) -> None:
        """After a crash, or when the call raised."""
        records = [_record(number) for number in range(1, 4)]
        for _ in range(2):
            consumer_case.take(records)
        _are_kept(consumer_case, records)

    def test_slices_may_overlap(self, consumer_case: ConsumerCase) -> None:
        """A slice that comes again may begin earlier and end later, or be a part of what it was."""
        records = [_record(number) for number in range(1, 9)]
        for start, end in ((2, 5), (0, 4), (3, 8), (7, 8), (0, 8)):
            consumer_case.take(records[start:end])
        _are_kept(consumer_case, records)

    def test_a_record_of_any_kind_is_kept(self, consumer_case: ConsumerCase) -> None:
        """Free and failed ones too, of which little is known, and with whatever clients send along."""
        records = [
            _record(1, price=None, cost=0, held=0, billed=False, usage=Usage()),
            _record(
                2, outcome="gateway_crash", flagged=True, first_byte_at=None, attempts=(), usage_source="slot"
            ),
            _record(3, cost=2**62, held=2**62, overrun=2**62),
            _record(4, tags={"line\nbreak": "\"quoted', é, 水, \U0001f6b0", "": ""}, idempotency_key="k\t\"'"),
            _record(5, retry_of="req_1", idempotency_key="k", attempts=(_attempt("timeout"), _attempt("ok"))),
        ]
        consumer_case.take(records)
        _are_kept(consumer_case, records)


def _are_kept(case: ConsumerCase, records: Sequence[UsageRecord]) -> None:
    assert Counter(case.kept()) == Counter(record.request_id for record in records)


def _attempt(outcome: str) -> Attempt:
    usage = Usage(input=3, output=2) if outcome == "ok" else None
    return Attempt(backend="echo", target="echo:echo", outcome=outcome, started_us=1, ended_us=2, usage=usage)


def _record(number: int, **other: object) -> UsageRecord:
    facts: dict[str, object] = {
        "seq": number, "request_id": f"req_{number}", "organization_id": "org_1", "project_id": "prj_1",
        "key_id": "key_1", "model": "echo", "task": "chat", "backend": "echo", "outcome": "ok",
        "usage": Usage(input=3, output=2, requests=1), "usage_source": "upstream", "price": "prc_1", "held": 5000,
        "cost": 5000, "overrun": 0, "billed": True, "flagged": False, "admitted_at": 1_795_000_000_000_000,
        "first_byte_at": 1_795_000_000_000_500, "finished_at": 1_795_000_000_001_000 + number,
        "idempotency_key": None, "retry_of": None, "tags": {}, "attempts": (_attempt("ok"),),
    }  # fmt: skip
    return UsageRecord(**{**facts, **other})  # type: ignore[arg-type]
