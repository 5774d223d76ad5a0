"""Headers of limits and retries, and where a key is looked for."""

from __future__ import annotations

import pytest
from headgate_gateway.domain.admission import LimitState
from headgate_gateway.http import headers
from headgate_gateway.http.credentials import presented
from headgate_gateway.http.model_routes import split_path


def state(kind: str, scope: str, remaining: int, reset_ms: int = 1500) -> LimitState:
    return LimitState(kind=kind, scope=scope, limit=60, remaining=remaining, reset_ms=reset_ms)  # type: ignore[arg-type]


def test_the_scope_with_the_least_left_is_the_one_that_is_felt() -> None:
    found = dict(headers.of_limits([state("requests", "key", 9), state("requests", "project", 2, 900)]))
    assert found[b"x-ratelimit-remaining-requests"] == b"2"
    assert found[b"x-ratelimit-reset-requests"] == b"900ms"
    assert found[b"ratelimit"] == b'"requests-key";r=9;t=2, "requests-project";r=2;t=1'
    assert found[b"ratelimit-policy"] == b'"requests-key";q=60;w=60, "requests-project";q=60;w=60'
    assert b"x-ratelimit-limit-tokens" not in found


def test_concurrency_is_no_rate() -> None:
    assert headers.of_limits([state("concurrency", "key", 0)]) == []
    assert headers.of_limits([]) == []


@pytest.mark.parametrize(("milliseconds", "seconds"), [(1, b"1"), (1000, b"1"), (1001, b"2"), (0, b"0")])
def test_retry_after_is_rounded_up(milliseconds: int, seconds: bytes) -> None:
    found = dict(headers.of_problem(retry_after_ms=milliseconds, final=False, close=False, code="overloaded"))
    assert found[b"retry-after"] == seconds
    assert found[b"retry-after-ms"] == b"%d" % milliseconds


@pytest.mark.parametrize(
    ("pairs", "key"),
    [
        ([(b"authorization", b"Bearer a")], "a"),
        ([(b"authorization", b"BEARER  a ")], "a"),
        ([(b"x-api-key", b"b"), (b"authorization", b"Bearer a")], "a"),
        ([(b"authorization", b"Basic a"), (b"api-key", b"c")], "c"),
        ([(b"x-goog-api-key", b"d"), (b"x-api-key", b"b")], "d"),
        ([], None),
    ],
)
def test_where_a_key_is_looked_for(pairs: list[tuple[bytes, bytes]], key: str | None) -> None:
    assert presented({"headers": pairs}) == key


@pytest.mark.parametrize(
    ("rest", "parts"),
    [
        ("/m/infer", ("m", None, "infer")),
        ("/org/m/infer", ("org/m", None, "infer")),
        ("/org/m/versions/2/infer", ("org/m", "2", "infer")),
        ("/m/versions/2", ("m", "2", "")),
        ("/m", ("m", None, "")),
        ("/ready", ("ready", None, "")),
        ("/m/ready", ("m", None, "ready")),
    ],
)
def test_paths_of_models_with_slashes(rest: str, parts: tuple[str, str | None, str]) -> None:
    assert split_path(rest) == parts
