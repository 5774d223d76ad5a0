from __future__ import annotations

from headgate_gateway.inference.bounds import Bound
from headgate_gateway.inference.meter import Meter, checked, recordable
from headgate_plugin_api import (
    DIMENSIONS,
    CompletionPayload,
    Event,
    Finished,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from hypothesis import given
from hypothesis import strategies as st

BOUND = Bound(
    usage=Usage(input=100, gpu_ms=1000),
    limit=50,
    choices=2,
    most=100,
    least=1,
    payload=CompletionPayload(prompts=("x" * 41,)),
)


def metered(*events: Event) -> Meter:
    meter = Meter()
    for event in events:
        meter.add(event)
    return meter


def said(usage: Usage, meter: Meter, *, trusted: bool = False) -> tuple[Usage, str]:
    return checked(UsageReport(usage=usage, source="upstream"), meter, BOUND, trusted=trusted)


def test_named_tokens_and_bytes_are_counted_apart():
    meter = metered(
        TextDelta(text="xyz", tokens=1),
        TextDelta(text="12345", tokens=None),
        TextDelta(text="678"),
        TextDelta(text="hmm, well", reasoning=True),
        TextDelta(text="so", reasoning=True, tokens=3),
        ToolCallDelta(name="f", arguments='{"a":1}'),
        Finished(reason="stop"),
    )
    assert (meter.output, meter.reasoning) == (1 + 16 // 4, 9 // 4 + 3)
    assert not meter.counted
    assert meter.pieces == 6


def test_no_report_is_counted_not_free():
    usage, source = checked(None, metered(TextDelta(text="x" * 40)), BOUND, trusted=False)
    assert usage == Usage(input=11, output=10, requests=1)
    assert source == "estimated"


def test_a_plausible_report_is_taken_as_it_is():
    usage, source = said(Usage(input=3, cache_read=7, output=12, reasoning=30), metered(TextDelta(text="x" * 40)))
    assert usage == Usage(input=3, cache_read=7, output=12, reasoning=30, requests=1)
    assert source == "upstream"


def test_more_tokens_than_bytes_are_not_believed():
    meter = metered(TextDelta(text="x" * 8))
    assert said(Usage(input=1, output=8 + 32), meter) == (Usage(input=1, output=40, requests=1), "upstream")
    assert said(Usage(input=1, output=8 + 33), meter) == (Usage(input=1, output=2, requests=1), "estimated")
    # Our own engines may make tokens without text; their limit is the limit.
    assert said(Usage(input=1, output=90), meter, trusted=True)[0].output == 90
    assert said(Usage(input=1, output=900), meter, trusted=True)[0].output == 100


def test_zero_for_relayed_text_is_not_believed():
    assert said(Usage(input=1), metered(TextDelta(text="x" * 8))) == (
        Usage(input=1, output=2, requests=1),
        "estimated",
    )
    assert said(Usage(input=1), metered(Finished(reason="stop"))) == (Usage(input=1, requests=1), "upstream")


def test_hidden_reasoning_is_held_against_the_limit():
    meter = metered(TextDelta(text="x" * 80))
    assert said(Usage(input=1, output=20, reasoning=80), meter)[0].reasoning == 80
    assert said(Usage(input=1, output=20, reasoning=81), meter) == (
        Usage(input=1, output=20, reasoning=80, requests=1),
        "estimated",
    )


def test_input_above_the_bound_is_cut_to_it():
    meter = metered(TextDelta(text="x" * 8))
    usage, source = said(Usage(input=60, cache_write=30, cache_read=30, output=1), meter)
    assert (usage.input, usage.cache_write, usage.cache_read) == (60, 30, 10)
    assert source == "estimated"


numbers = st.integers(min_value=-(2**70), max_value=2**70)
events = st.lists(
    st.one_of(
        st.builds(TextDelta, text=st.text(max_size=20), tokens=st.none() | numbers, reasoning=st.booleans()),
        st.builds(ToolCallDelta, arguments=st.text(max_size=20), call=st.integers(0, 3)),
    ),
    max_size=20,
)


@given(
    st.builds(Usage, **dict.fromkeys(DIMENSIONS, numbers)),
    events,
    st.booleans(),
)
def test_whatever_is_said_the_bound_stands(report: Usage, relayed: list[Event], trusted: bool):
    meter = metered(*relayed)
    for usage in (
        said(report, meter, trusted=trusted)[0],
        meter.delivered(BOUND),
        meter.delivered(BOUND, report),
    ):
        assert all(getattr(usage, name) >= 0 for name in DIMENSIONS)
        assert usage.prompt_tokens <= BOUND.usage.input
        assert usage.completion_tokens <= BOUND.most
        assert usage.images == usage.audio_ms == 0
        assert usage.gpu_ms <= 1000
        assert usage.requests == 1
    assert all(0 <= getattr(recordable(report), name) <= 2**53 for name in DIMENSIONS)
