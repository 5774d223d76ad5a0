"""The comparison finds what is planted: a benchmark that prints zeros must be able to print something else."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.money.clients import Done, Try
from benchmarks.money.compare import Findings, Record, Window, compare
from benchmarks.money.plan import FAR, Operation, cost, operations
from benchmarks.truthful_upstream import Behaviour, Order, Truth

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
COMPLETE = Try(status=200, request_id="req_1", complete=True, words=WORDS, cost=COST)
WINDOW = Window("key k", limit=COST, spent=COST, held=0, accounts=frozenset({0}))


def found(
    tries: list[Try] | None = None,
    truth: list[Truth] | None = None,
    records: list[Record] | None = None,
    windows: list[Window] | None = None,
    *,
    what: Operation | None = None,
    resolved: bool = True,
) -> Findings:
    done = Done(what or operation(), [COMPLETE] if tries is None else tries, resolved=resolved)
    return compare(
        [done], [TRUTH] if truth is None else truth, [RECORD] if records is None else records, windows or []
    )


def other(**changes: object) -> Record:
    return dataclasses.replace(RECORD, **changes)  # type: ignore[arg-type]


def test_three_views_that_agree_give_no_finding() -> None:
    assert found(windows=[WINDOW]).all() == []


def test_a_full_answer_without_a_charge_is_lost() -> None:
    assert len(found(records=[]).lost) == 1
    assert len(found(records=[other(billed=False, cost=0)]).lost) == 1


def test_a_part_that_arrived_is_due_but_for_its_last_word() -> None:
    part = Try(status=200, request_id="req_1", words=6)
    for paid, lost in ((6, 0), (5, 0), (4, 1)):
        record = other(output=paid, cost=cost(PROMPT, paid), outcome="gateway_crash")
        assert len(found([part], [dataclasses.replace(TRUTH, end="peer_gone")], [record]).lost) == lost
    assert len(found([part], records=[]).lost) == 1
    waived = other(billed=False, cost=0, outcome="engine_crash")
    assert found([part], records=[waived]).lost == []


def test_one_key_is_billed_once_and_no_attempt_more_often_than_it_was_made() -> None:
    twice = [RECORD, other(request_id="req_2")]
    assert len(found(records=twice, truth=[TRUTH, TRUTH]).doubled) == 1
    two = [COMPLETE, Try(status=200, request_id="req_2", complete=True, words=WORDS, cost=COST)]
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
    enough = operation().affordable_at
    room = Window("key k", limit=enough, spent=0, held=0, accounts=frozenset({0}))
    assert len(found([refusal], [], [], [room]).refused) == 1
    assert found([refusal], [], [], [dataclasses.replace(room, limit=enough - 1)]).refused == []


def test_an_operation_that_was_never_answered_is_named() -> None:
    assert len(found([Try(status=503)], [], [], resolved=False).refused) == 1
    assert len(found([Try(hung=True)], [], []).hung) == 1


def test_a_plan_is_the_same_for_the_same_seed_and_has_every_kind() -> None:
    first = [one for one, _ in zip(operations(7, 9, 3), range(500), strict=False)]
    again = [one for one, _ in zip(operations(7, 9, 3), range(500), strict=False)]
    assert first == again
    assert {one.order.behaviour for one in first} >= {"honest", "stall", "reset", "error", "inflate", "negative"}
    assert {one.account for one in first} == set(range(9))
