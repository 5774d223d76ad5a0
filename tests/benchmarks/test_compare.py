"""The comparison finds what is planted: a benchmark that prints zeros must be able to print something else."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.money.clients import Done, Try
from benchmarks.money.compare import Findings, Record, Version, Window, compare
from benchmarks.money.plan import FAR, PRICES, TENSORS, VECTORS, Operation, Payer, Price, cost, operations
from benchmarks.truthful_upstream import Behaviour, Order, Truth, answer_words

PROMPT, WORDS = 4, 10
COST = cost(PROMPT, WORDS)


def operation(behaviour: Behaviour = "honest", *, claimed: bool = True) -> Operation:
    return Operation(
        name="op", account=0, model=FAR, prompt=PROMPT, order=Order("op", WORDS, behaviour), stream=True,
        limit=20, leaves_after=None, claimed=claimed, twice=False,
    )  # fmt: skip


RECORD = Record(
    request_id="req_1", operation="op", outcome="ok", input=PROMPT, output=WORDS, cost=COST, billed=True
)
TRUTH = Truth("op", 1, True, PROMPT, WORDS, "complete")
TEXT = [word.strip() for word in answer_words("op", WORDS)]
COMPLETE = Try(status=200, request_id="req_1", complete=True, text=TEXT, cost=COST)
WINDOW = Window("key k", limit=COST, spent=COST, held=0, accounts=frozenset({0}))


def found(
    tries: list[Try] | None = None,
    truth: list[Truth] | None = None,
    records: list[Record] | None = None,
    windows: list[Window] | None = None,
    *,
    what: Operation | None = None,
    resolved: bool = True,
    versions: dict[str, Version] | None = None,
    payers: tuple[Payer, ...] = (),
) -> Findings:
    done = Done(what or operation(), [COMPLETE] if tries is None else tries, resolved=resolved)
    told, recorded = [TRUTH] if truth is None else truth, [RECORD] if records is None else records
    return compare([done], told, recorded, windows or [], versions, payers)


def other(**changes: object) -> Record:
    return dataclasses.replace(RECORD, **changes)  # type: ignore[arg-type]


def test_three_views_that_agree_give_no_finding() -> None:
    assert found(windows=[WINDOW]).all() == []


def test_a_hold_of_more_than_can_be_needed_is_found() -> None:
    enough = operation().affordable_at(PRICES[FAR])
    assert found(records=[other(held=enough)]).all() == []
    assert len(found(records=[other(held=enough + 1)]).wrong) == 1


def test_a_full_answer_without_a_charge_is_lost() -> None:
    assert len(found(records=[]).lost) == 1
    assert len(found(records=[other(billed=False, cost=0)]).lost) == 1


def test_a_part_that_arrived_is_due_but_for_its_last_word() -> None:
    part = Try(status=200, request_id="req_1", text=TEXT[:6])
    for paid, lost in ((6, 0), (5, 0), (4, 1)):
        record = other(output=paid, cost=cost(PROMPT, paid), outcome="gateway_crash")
        assert len(found([part], [dataclasses.replace(TRUTH, end="peer_gone")], [record]).lost) == lost
    assert len(found([part], records=[]).lost) == 1
    waived = other(billed=False, cost=0, outcome="engine_crash")
    assert found([part], records=[waived]).lost == []


def test_one_key_is_billed_once_and_no_attempt_more_often_than_it_was_made() -> None:
    twice = [RECORD, other(request_id="req_2")]
    assert len(found(records=twice, truth=[TRUTH, TRUTH]).doubled) == 1
    two = [COMPLETE, Try(status=200, request_id="req_2", complete=True, text=TEXT, cost=COST)]
    free = operation(claimed=False)
    assert found(two, [TRUTH, TRUTH], twice, what=free).doubled == []
    assert len(found(two, [TRUTH], twice, what=free).doubled) == 1
    assert len(found(records=[RECORD, other(request_id="req_9", operation="nobody's")]).doubled) == 1


@pytest.mark.parametrize(
    "record",
    [
        other(output=WORDS + 1, cost=cost(PROMPT, WORDS + 1)),
        other(output=WORDS - 1, cost=cost(PROMPT, WORDS - 1)),
        other(input=PROMPT + 1, cost=cost(PROMPT + 1, WORDS)),
        other(cost=COST + 1),
        other(held=COST - 1),
    ],
)
def test_any_other_charge_is_wrong(record: Record) -> None:
    assert found(records=[record]).wrong


def test_a_charge_is_capped_by_its_hold() -> None:
    tries = [dataclasses.replace(COMPLETE, cost=COST - 1)]
    assert found(tries, records=[other(held=COST - 1, cost=COST - 1)]).all() == []


def test_a_liar_s_input_is_not_held_against_the_gateway_but_its_output_is() -> None:
    liar = operation("inflate")
    assert found([dataclasses.replace(COMPLETE, cost=cost(90, WORDS))],
                 records=[other(input=90, cost=cost(90, WORDS))], what=liar).all() == []  # fmt: skip
    assert found(records=[other(output=11, cost=cost(PROMPT, 11))], what=liar).wrong


def test_budgets_are_summed_again() -> None:
    assert found(windows=[dataclasses.replace(WINDOW, limit=COST - 1)]).overrun == 1
    assert found(windows=[dataclasses.replace(WINDOW, spent=COST - 1)]).wrong
    assert found(windows=[dataclasses.replace(WINDOW, held=1)]).refused


def test_a_refusal_is_for_good_when_the_budget_had_room_all_along() -> None:
    refusal = Try(status=402, code="budget_exhausted")
    enough = operation().affordable_at(PRICES[FAR])
    room = Window("key k", limit=enough, spent=0, held=0, accounts=frozenset({0}))
    assert len(found([refusal], [], [], [room]).refused) == 1
    assert found([refusal], [], [], [dataclasses.replace(room, limit=enough - 1)]).refused == []


def test_an_operation_that_was_never_answered_is_named() -> None:
    assert len(found([Try(status=503)], [], [], resolved=False).refused) == 1
    assert len(found([Try(hung=True)], [], []).hung) == 1


def test_words_that_are_missing_or_twice_are_found() -> None:
    for text in (TEXT[1:], [TEXT[0], *TEXT[:-1]]):
        assert found([dataclasses.replace(COMPLETE, text=text)]).wrong


def test_a_plan_is_the_same_for_the_same_seed_and_has_every_kind() -> None:
    first = [one for one, _ in zip(operations(7, 9, 3), range(500), strict=False)]
    again = [one for one, _ in zip(operations(7, 9, 3), range(500), strict=False)]
    assert first == again
    assert {one.order.behaviour for one in first} >= {"honest", "stall", "reset", "error", "inflate", "negative"}
    assert {one.account for one in first} == set(range(9))
    assert {one.model for one in first} == set(PRICES)


def test_prices_are_counted_from_their_meaning() -> None:
    assert Price("0.37", "1.13").due(3, 4) == 3 * 370 + 4 * 1130
    assert [Price("0.0005", "0").due(tokens, 0) for tokens in (1, 3)] == [0, 2]  # halves go to the even side
    assert Price("1", "1", context=(10, "2", "3")).due(10, 1) == 11_000
    assert Price("1", "1", context=(10, "2", "3")).due(11, 1) == 25_000
    assert Price("1", "1", graduated=(10, "2", "3")).due(11, 11) == (10 + 2 + 10 + 3) * 1000
    assert Price("1", minimum="0.001").due(1, 0) == 1_000_000
    assert Price(request="0.001").due(0, 0) == 1_000_000


def test_a_charge_is_due_at_the_price_in_force_when_it_was_admitted() -> None:
    dear = Price("3.7", "11.3")
    versions = {"old": Version(FAR, 0, PRICES[FAR]), "new": Version(FAR, 100, dear)}
    for price, admitted_at, due, wrong in (
        ("old", 99, COST, 0),
        ("old", 100, COST, 1),
        ("new", 100, dear.due(PROMPT, WORDS), 0),
        ("new", 99, dear.due(PROMPT, WORDS), 1),
        ("new", 100, COST, 1),
        ("none", 100, COST, 1),
    ):
        record = other(price=price, admitted_at=admitted_at, cost=due)
        tries = [dataclasses.replace(COMPLETE, cost=due)]
        assert len(found(tries, records=[record], versions=versions).wrong) == wrong, (price, admitted_at, due)


def test_more_than_a_limit_allows_is_found() -> None:
    def over(kind: str, limit: int, *times: tuple[int, int]) -> int:
        records = [
            other(request_id=f"req_{number}", admitted_at=begin, finished_at=end)
            for number, (begin, end) in enumerate(times)
        ]
        payer = Payer("limited", **{kind: limit})  # type: ignore[arg-type]
        free = operation(claimed=False)
        about = found(records=records, what=free, payers=(payer,)).wrong
        return sum("limited" in one for one in about)

    minute = 60_000_000
    assert over("rpm", 2, (0, 1), (0, 1), (minute // 2, 1)) == 0
    assert over("rpm", 2, (0, 1), (0, 1), (minute // 2 - 1, 1)) == 1
    assert over("tpm", PROMPT + WORDS, (0, 1), (minute, 1)) == 0
    assert over("tpm", PROMPT + WORDS - 1, (0, 1)) == 1
    assert over("concurrency", 1, (0, 5), (5, 9)) == 0
    assert over("concurrency", 1, (0, 5), (4, 9)) == 1


def test_a_refusal_that_nothing_in_the_load_deserves_is_found() -> None:
    assert len(found([Try(status=500, code="internal_error")], [], []).refused) == 1
    assert found([Try(status=503, code="overloaded")], [], []).refused == []


@pytest.mark.parametrize("model", [VECTORS, TENSORS])
def test_what_makes_no_text_is_due_in_full_and_may_run_again(model: str) -> None:
    what = dataclasses.replace(operation(), model=model, stream=False)
    due = PRICES[model].due(what.billed_input, 0)
    whole = dataclasses.replace(COMPLETE, text=what.answer(1), cost=due)
    record = other(input=what.billed_input, output=0, cost=due)
    assert found([whole], [], [record], what=what).all() == []
    assert found([dataclasses.replace(whole, text=whole.text[1:])], [], [record], what=what).wrong != []
    again = dataclasses.replace(whole, request_id="req_2", cost=0)
    free = other(request_id="req_2", input=what.billed_input, output=0, cost=0, billed=False)
    assert found([again], [], [record, free], what=what).all() == []
    assert len(found([again], [], [free], what=what).lost) == 1
