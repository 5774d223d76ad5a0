"""Writing lines for a reader that sleeps: nothing waits, little is kept, what is lost is said."""

from __future__ import annotations

import threading

from headgate_gateway.telemetry.lines import LineWriter


def test_lines_come_out_in_order_and_close_waits_for_them() -> None:
    written: list[str] = []
    writer = LineWriter(written.append)
    for number in range(100):
        writer.write(f"{number}\n")
    writer.close()
    assert "".join(written).split() == [str(number) for number in range(100)]


def test_a_reader_that_sleeps_costs_lines_and_not_time() -> None:
    written: list[str] = []
    awake, began = threading.Event(), threading.Event()

    def write(text: str) -> None:
        began.set()
        assert awake.wait(30)
        written.append(text)

    writer = LineWriter(write, most=10)
    writer.write("first\n")
    assert began.wait(30)
    writer.write("abc\n")
    writer.write("too much\nby two\n")
    awake.set()
    writer.close()
    assert written[0] == "first\n"
    assert "too much" not in "".join(written)
    assert "2 log lines were dropped" in "".join(written)


def test_nothing_to_write_starts_no_thread() -> None:
    before = threading.active_count()
    LineWriter().close()
    assert threading.active_count() == before
