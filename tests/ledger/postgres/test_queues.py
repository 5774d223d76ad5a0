"""Which batch begins next: little work is taken together, much by several lanes, and nothing waits for ever."""

from __future__ import annotations

from headgate_gateway.domain import commands as c
from headgate_gateway.ledger import wire
from headgate_gateway.ledger.core import BATCH, Speaker
from headgate_gateway.ledger.postgres.queues import Entry, Queues

ZEROS = (0,) * 9


def entry(op: wire.Op) -> Entry:
    return Entry(None, Speaker(), op)


def admit(name: str) -> Entry:
    return entry(wire.Admit(1, name, "key", "m", "chat", ZEROS, 1, 1, False, 2**62))


def void(name: str) -> Entry:
    return entry(wire.Void(1, name))


def command() -> Entry:
    return entry(wire.Run(1, c.ListAccounts()))


def names(taken: tuple[int, list[Entry]] | None) -> tuple[int, list[str]]:
    assert taken is not None
    return taken[0], [getattr(each.op, "request_id", "command") for each in taken[1]]


def test_little_work_of_all_lanes_is_one_batch_and_ends_go_first() -> None:
    queues = Queues(4)
    for lane in range(4):
        queues.put(lane, admit(f"admit {lane}"))
        queues.put(lane, void(f"void {lane}"))
    ends, begins = [f"void {n}" for n in range(4)], [f"admit {n}" for n in range(4)]
    assert names(queues.take()) == (0, ends + begins)
    queues.put(1, void("later"))
    assert queues.take() is None
    queues.ended(0)
    assert names(queues.take(freed=True)) == (1, ["later"])
    assert not queues.idle
    queues.ended(1)
    assert queues.idle


def test_another_lane_begins_for_a_whole_batch_of_its_own() -> None:
    queues = Queues(4)
    queues.put(0, void("first"))
    assert names(queues.take()) == (0, ["first"])
    for n in range(BATCH):
        assert queues.take() is None
        queues.put(2, admit(f"admit {n}"))
        queues.put(0, void(f"void {n}"))
    lane, taken = names(queues.take())
    assert (lane, len(taken)) == (2, BATCH)
    assert queues.take() is None  # its organizations are in a batch that is being carried out
    assert queues.take(freed=True) is None
    queues.ended(0)
    assert names(queues.take(freed=True))[0] == 0


def test_what_waits_longest_goes_first_however_much_there_is_elsewhere() -> None:
    queues = Queues(2)
    queues.put(1, admit("small"))
    for n in range(3 * BATCH):
        queues.put(0, void(f"void {n}"))
    assert names(queues.take()) == (1, ["small"])
    assert names(queues.take())[0] == 0
    queues.ended(1)
    queues.put(1, admit("next"))
    queues.ended(0)
    assert names(queues.take(freed=True))[0] == 0  # its turn was before this came
    queues.ended(0)
    assert names(queues.take(freed=True)) == (1, ["next"])


def test_a_command_is_a_batch_of_its_own_and_waits_for_no_other_lane() -> None:
    queues = Queues(2)
    queues.put(1, admit("before"))
    assert names(queues.take())[1] == ["before"]
    queues.put(0, command())
    queues.put(0, admit("after"))
    assert names(queues.take()) == (0, ["command"])
    queues.ended(0)
    assert names(queues.take(freed=True)) == (0, ["after"])


def test_the_admissions_of_a_client_that_has_gone_are_dropped_and_its_ends_are_not() -> None:
    queues, gone = Queues(4), object()
    for lane in range(2):
        queues.put(lane, admit(f"admit {lane}"))
        queues.put(lane, admit(f"gone {lane}")._replace(to=gone))  # type: ignore[arg-type]
        queues.put(lane, void(f"void {lane}")._replace(to=gone))  # type: ignore[arg-type]
    assert [entry.op.request_id for entry in queues.drop(gone)] == ["gone 0", "gone 1"]  # type: ignore
    assert names(queues.take()) == (0, ["void 0", "void 1", "admit 0", "admit 1"])
