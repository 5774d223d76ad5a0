"""The batcher's choice: full batches, little padding, nobody starves, the bounds hold."""

import pytest
from headgate_engine.batcher import Batcher, Job, Slot
from headgate_engine.spec import EngineSpec
from headgate_plugin_api import EmbedPayload, InferenceRequest, Item, Overloaded
from hypothesis import given
from hypothesis import strategies as st


def batcher(*, tokens: int = 16_384, items: int = 256, requests: int = 10_000, queue: int = 10**9) -> Batcher:
    return Batcher(
        EngineSpec(
            id="m",
            task="embed",
            backend="b",
            options={"max_batch_tokens": tokens, "max_batch_items": items},
            queue_requests=requests,
            queue_tokens=queue,
        )
    )


def waiting(queue: Batcher, name: str, *lengths: int, shape: tuple[int, ...] = (), estimate: int = 1) -> Job:
    request = InferenceRequest(id=name, model="m", payload=EmbedPayload(inputs=("x",)))
    job = Job(request, deadline=100.0, tokens=estimate)
    queue.reserve(job, retry_after_s=1.0)
    items = [
        Item(request=request, index=index, tokens=tokens, data=None, shape=shape)
        for index, tokens in enumerate(lengths)
    ]
    queue.add(job, items)
    return job


def lengths(batch: list[Slot]) -> list[int]:
    return sorted(slot.item.tokens for slot in batch)


def test_everything_that_fits_runs_together() -> None:
    queue = batcher(tokens=100)
    waiting(queue, "a", 10)
    waiting(queue, "b", 10, 10)
    assert lengths(queue.form()) == [10, 10, 10]
    assert queue.form() == []


def test_padding_counts_against_the_budget() -> None:
    queue = batcher(tokens=100)
    waiting(queue, "a", 50)
    waiting(queue, "b", 1, 1, 1)
    assert lengths(queue.form()) == [1, 50]  # two places of 50
    assert lengths(queue.form()) == [1, 1]


def test_similar_lengths_are_preferred() -> None:
    queue = batcher(tokens=1000, items=3)
    waiting(queue, "a", 10, 300, 11, 290, 12, 310)
    assert lengths(queue.form()) == [10, 11, 12]
    assert lengths(queue.form()) == [290, 300, 310]


def test_the_oldest_is_always_in_the_next_batch() -> None:
    queue = batcher(tokens=1000, items=4)
    waiting(queue, "long", 900)
    for number in range(40):
        waiting(queue, f"short{number}", 5)
    assert 900 in lengths(queue.form())


def test_an_item_over_the_budget_runs_alone() -> None:
    queue = batcher(tokens=100)
    waiting(queue, "a", 500)
    waiting(queue, "b", 5)
    assert lengths(queue.form()) == [500]


def test_shapes_are_not_mixed() -> None:
    queue = batcher()
    waiting(queue, "a", 1, shape=(3,))
    waiting(queue, "b", 1, shape=(4,))
    waiting(queue, "c", 1, shape=(3,))
    assert [slot.job.request.id for slot in queue.form()] == ["a", "c"]
    assert [slot.job.request.id for slot in queue.form()] == ["b"]


def test_the_queue_is_bounded_by_requests() -> None:
    queue = batcher(requests=2)
    waiting(queue, "a", 1)
    waiting(queue, "b", 1)
    with pytest.raises(Overloaded, match="2 requests wait for m") as caught:
        waiting(queue, "c", 1)
    assert caught.value.retry_after_s == 1.0
    queue.form()
    waiting(queue, "c", 1)


def test_the_queue_is_bounded_by_tokens_as_counted_not_as_estimated() -> None:
    queue = batcher(queue=100)
    waiting(queue, "a", 99, estimate=10)
    with pytest.raises(Overloaded, match="99 input tokens wait"):
        waiting(queue, "b", 2, estimate=2)
    waiting(queue, "c", 1, estimate=1)


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    queue = batcher(queue=100)
    waiting(queue, "huge", 500, estimate=500)
    assert lengths(queue.form()) == [500]


def test_a_discarded_job_frees_its_place_and_never_runs() -> None:
    queue = batcher(requests=1)
    job = waiting(queue, "a", 1, 2, 3)
    queue.discard(job)
    assert not queue.ready
    waiting(queue, "b", 4)
    assert lengths(queue.form()) == [4]
    queue.discard(job)
    assert queue.requests == 0


def test_late_jobs_are_found() -> None:
    queue = batcher()
    job = waiting(queue, "a", 1, 1)
    assert queue.expired(99.0) == []
    assert queue.expired(100.0) == [job]


@given(
    st.lists(st.lists(st.integers(1, 200), max_size=5), max_size=30),
    st.integers(1, 400),
    st.integers(1, 8),
    st.integers(0, 29),
)
def test_every_item_runs_once_within_the_budget_and_the_books_are_empty_after(
    jobs: list[list[int]], tokens: int, items: int, dropped: int
) -> None:
    queue = batcher(tokens=tokens, items=items)
    made = [waiting(queue, f"j{number}", *sizes) for number, sizes in enumerate(jobs)]
    if made:
        queue.discard(made[dropped % len(made)])
        made.pop(dropped % len(made))
    expected = {(job.request.id, item.index) for job in made for item in job.items}
    seen: list[tuple[str, int]] = []
    while queue.ready:
        batch = queue.form()
        assert batch
        sizes = lengths(batch)
        assert len(batch) <= items
        assert len(batch) == 1 or len(batch) * sizes[-1] <= tokens
        seen += [(slot.job.request.id, slot.item.index) for slot in batch]
    assert sorted(seen) == sorted(expected)
    assert (queue.requests, queue._tokens) == (0, 0)
