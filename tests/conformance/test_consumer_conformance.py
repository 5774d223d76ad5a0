"""The example that takes usage records keeps the contract, and the suite notices those that do not."""

from __future__ import annotations

import importlib.util
import json
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from headgate_plugin_api import UsageRecord
from headgate_plugin_api.conformance import ConsumerCase, ConsumerConformance

EXAMPLE = Path(__file__).parents[2] / "examples" / "usage_ndjson" / "headgate_usage_ndjson.py"


def loaded() -> ModuleType:
    """The example, as after a start."""
    spec = importlib.util.spec_from_file_location("headgate_usage_ndjson", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def consumer_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConsumerCase:
    file = tmp_path / "usage.ndjson"
    monkeypatch.setenv("USAGE_NDJSON", str(file))

    def take(records: Sequence[UsageRecord]) -> None:
        """Each call by a process that has just started and is then killed in the middle of a line."""
        module = loaded()
        module.headgate_usage_recorded(records)
        module.opened()[0].close()
        with file.open("ab") as opened:
            opened.write(b'{"seq":')

    def kept() -> list[str]:
        return [json.loads(line)["request_id"] for line in file.read_bytes().splitlines()[:-1]]

    return ConsumerCase(take=take, kept=kept)


class TestNdjson(ConsumerConformance):
    pass


def test_a_full_disk_is_said_and_what_is_cut_off_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headgate_plugin_api.conformance.consumer import _record

    file = tmp_path / "usage.ndjson"
    monkeypatch.setenv("USAGE_NDJSON", str(file))
    module = loaded()
    records = [_record(number) for number in range(1, 10)]
    module.headgate_usage_recorded(records[:2])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            module.headgate_usage_recorded(records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    module.headgate_usage_recorded(records)
    module.opened()[0].close()
    lines = file.read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [record.request_id for record in records]


@pytest.mark.parametrize(
    "check",
    [
        ConsumerConformance.test_a_slice_that_comes_again_is_not_kept_again,
        ConsumerConformance.test_slices_may_overlap,
    ],
)
def test_who_keeps_records_twice_is_found(check: Callable[[ConsumerConformance, ConsumerCase], None]) -> None:
    kept: list[str] = []
    case = ConsumerCase(take=lambda records: kept.extend(r.request_id for r in records), kept=lambda: kept)
    with pytest.raises(AssertionError):
        check(ConsumerConformance(), case)


def test_who_keeps_less_is_found() -> None:
    kept: list[str] = []

    def take(records: Sequence[UsageRecord]) -> None:
        kept.extend(record.request_id for record in records if record.price is not None)

    with pytest.raises(AssertionError):
        ConsumerConformance().test_a_record_of_any_kind_is_kept(ConsumerCase(take=take, kept=lambda: kept))
