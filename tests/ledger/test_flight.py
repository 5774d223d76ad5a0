"""Flight files survive their writer, and are believed only when it is surely dead."""

import contextlib
import fcntl
import os
import random
from pathlib import Path

import pytest
from headgate_gateway.ledger.flight import (
    ADMITTED,
    DISPATCHED,
    ENDED,
    ZERO,
    FlightFile,
    boot_id,
    dead_files,
)

USAGE = (1, 2, 3, 4, 5, 6, 7, 8, 2**60)


def abandoned(path: Path) -> FlightFile:
    return FlightFile(path, 3, slots=8)


def let_go(file: FlightFile) -> None:
    """What the kernel does when the writer dies."""
    fcntl.flock(file._fd, fcntl.LOCK_UN)


def test_a_living_writers_file_is_left_alone(tmp_path: Path) -> None:
    file = abandoned(tmp_path / "worker-3.flight")
    file.take("req_1")
    assert list(dead_files(tmp_path)) == []
    file.close()
    assert len(list(dead_files(tmp_path))) == 1


def test_a_file_has_its_room_on_disk_from_the_start(tmp_path: Path) -> None:
    found = FlightFile(tmp_path / "worker-3.flight", 3).path.stat()
    assert found.st_blocks * 512 >= found.st_size > 1_000_000  # a hole that is written to on a full disk kills


def test_what_was_in_flight_is_read_back(tmp_path: Path) -> None:
    file = abandoned(tmp_path / "worker-3.flight")
    slots = {name: file.take(name) for name in ("req_admitted", "req_sent", "req_ended", "req_gone")}
    file.write(slots["req_sent"], DISPATCHED)  # type: ignore[arg-type]
    file.write(slots["req_sent"], DISPATCHED, USAGE)  # type: ignore[arg-type]
    file.end(slots["req_ended"], USAGE, "budget_stop", "upstream", billed=False)  # type: ignore[arg-type]
    file.free(slots["req_gone"])  # type: ignore[arg-type]
    let_go(file)
    for dead in dead_files(tmp_path):
        assert (dead.header.worker, dead.header.incarnation) == (3, file.incarnation)
        assert dead.header.boot_id == boot_id()
        found = {flight.request_id: flight for flight in dead.flights()}
        assert set(found) == {"req_admitted", "req_sent", "req_ended"}
        assert (found["req_admitted"].state, found["req_admitted"].usage) == (ADMITTED, ZERO)
        assert found["req_sent"].usage == USAGE
        ended = found["req_ended"]
        assert (ended.state, ended.outcome, ended.source, ended.billed) == (
            ENDED,
            "budget_stop",
            "upstream",
            False,
        )
        dead.retire()
    assert not list(dead_files(tmp_path))
    file.close()


def test_a_worker_lives_again_in_the_room_of_its_last_life(tmp_path: Path) -> None:
    path = tmp_path / "worker-3.flight"
    room = set()
    for slots in (8, 8, 4, 4):  # the last two are of another release
        file = FlightFile(path, 3, slots=slots)
        facts = file.path.stat()
        assert facts.st_blocks * 512 >= facts.st_size == 128 + slots * 256
        room.add(facts.st_ino)
        assert [found.name for found in tmp_path.iterdir()] == [file.path.name]
        slot = file.take("req_1")
        assert slot is not None
        file.write(slot, DISPATCHED, USAGE)
        let_go(file)
        for dead in dead_files(tmp_path):
            assert [flight.usage for flight in dead.flights()] == [USAGE]
            dead.retire()
        file.close()
    last = FlightFile(path, 3, slots=8)
    assert {*room, last.path.stat().st_ino} == room
    assert len(room) == 1
    let_go(last)
    assert [list(dead.flights()) for dead in dead_files(tmp_path)] == [[]]  # nothing of a life before
    last.close()
    assert FlightFile(path, 3, slots=8).path.stat().st_ino in room  # nor does a stop give it up


def test_what_died_as_it_began_leaves_no_room_taken(tmp_path: Path) -> None:
    path = tmp_path / "worker-3.flight"
    FlightFile(path, 3, slots=8).close()
    (tmp_path / "worker-3.spare").rename(tmp_path / "worker-3-dead.new")
    file = FlightFile(path, 3, slots=8)
    assert [found.name for found in tmp_path.iterdir()] == [file.path.name]
    file.close()


def test_workers_that_start_together_share_no_file(tmp_path: Path) -> None:
    path = tmp_path / "worker-3.flight"
    FlightFile(path, 3, slots=8).close()
    first, second = FlightFile(path, 3, slots=8), FlightFile(path, 3, slots=8)
    assert first.path.stat().st_ino != second.path.stat().st_ino
    assert list(dead_files(tmp_path)) == []
    first.close()
    second.close()
    assert [found.name for found in tmp_path.iterdir()] == ["worker-3.spare"]


def test_a_torn_copy_falls_back_to_the_one_before(tmp_path: Path) -> None:
    noise = random.Random(4)
    for round_ in range(40):
        folder = tmp_path / str(round_)
        file = abandoned(folder / "worker-3.flight")
        slot = file.take("req_1")
        assert slot is not None
        counts = [(n,) * 9 for n in range(1, noise.randrange(3, 9))]
        for usage in counts:
            file.write(slot, DISPATCHED, usage)
        newest = slot.place + (slot.serial & 1) * 128
        place = newest + noise.randrange(120)
        os.pwrite(file._fd, bytes([os.pread(file._fd, 1, place)[0] ^ (1 << noise.randrange(8))]), place)
        let_go(file)
        (flights,) = [list(dead.flights()) for dead in dead_files(folder)]
        assert [flight.usage for flight in flights] == [counts[-2]]
        file.close()


def test_full(tmp_path: Path) -> None:
    file = abandoned(tmp_path / "worker-3.flight")
    taken = [file.take(f"req_{n}") for n in range(8)]
    assert None not in taken
    assert file.take("req_8") is None
    file.free(taken[0])  # type: ignore[arg-type]
    assert file.take("req_9") is not None
    file.close()


def test_the_file_has_all_its_bytes_from_the_start(tmp_path: Path) -> None:
    file = abandoned(tmp_path / "worker-3.flight")
    facts = file.path.stat()
    assert facts.st_blocks * 512 >= facts.st_size == 128 + 8 * 256
    assert facts.st_mode & 0o777 == 0o600
    file.close()
    assert not file.path.exists()


def test_a_file_that_is_none_is_removed_only_when_unlocked(tmp_path: Path) -> None:
    junk = tmp_path / "worker-0.flight"
    junk.write_bytes(b"")
    with junk.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert list(dead_files(tmp_path)) == []
    assert list(dead_files(tmp_path)) == []
    assert not junk.exists()


@pytest.mark.parametrize("length", [0, 50, 128, 300])
def test_a_cut_file_is_read_as_far_as_it_goes(tmp_path: Path, length: int) -> None:
    file = abandoned(tmp_path / "worker-3.flight")
    file.take("req_1")
    let_go(file)
    with contextlib.closing(file):
        os.truncate(file.path, length)
        for dead in dead_files(tmp_path):
            assert list(dead.flights()) == []
