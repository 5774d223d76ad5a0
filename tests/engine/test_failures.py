"""A failure is the same on both sides of the process border."""

import pytest
from headgate_engine.failures import from_wire, to_wire, without_folders
from headgate_plugin_api import (
    BackendError,
    Cancelled,
    InvalidRequest,
    LoadFailed,
    NotReady,
    Overloaded,
    UpstreamFailed,
    UpstreamTimeout,
    Usage,
)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("expected text", path="input[3]"),
        Overloaded("full", retry_after_s=2.5),
        NotReady("loading", retry_after_s=0.25),
        UpstreamFailed("broke"),
        UpstreamTimeout("late"),
        Cancelled("gone"),
        LoadFailed("weights.bin"),
    ],
    ids=lambda error: error.code,
)
def test_it_comes_back_as_it_was(error: BackendError) -> None:
    back = from_wire(to_wire("r", error))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert str(back) == str(error)


def test_what_nobody_meant_to_raise_is_the_models_failure() -> None:
    failed = to_wire("r", KeyError("x"), Usage(input=3))
    assert (failed.code, failed.usage) == ("upstream_error", Usage(input=3))
    back = from_wire(failed)
    assert isinstance(back, UpstreamFailed)
    assert back.retryable
    assert "KeyError" in back.message


@pytest.mark.parametrize(
    ("operator", "client"),
    [
        ("/srv/models/minilm/model.onnx has sha256 8e…", "model.onnx has sha256 8e…"),
        ("/srv/models/minilm: tokenizer: KeyError", "minilm: tokenizer: KeyError"),
        (
            "[Errno 2] No such file or directory: '/srv/a-b/c_d.json'",
            "[Errno 2] No such file or directory: 'c_d.json'",
        ),
        (
            "see https://host/a/b and org/name, 3/4/5 (/etc/hosts)",
            "see https://host/a/b and org/name, 3/4/5 (hosts)",
        ),
    ],
)
def test_a_client_is_told_files_and_not_where_they_lie(operator: str, client: str) -> None:
    assert without_folders(operator) == client
    assert from_wire(to_wire("r", LoadFailed(operator))).message == client
    assert from_wire(to_wire("r", InvalidRequest("stop: '/a/b/c'"))).message == "stop: '/a/b/c'"


def test_every_error_of_the_api_has_a_way_across() -> None:
    for kind in BackendError.__subclasses__():
        assert type(from_wire(to_wire("r", kind("message")))) is kind
