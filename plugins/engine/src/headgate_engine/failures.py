"""Failures as they cross the process border, in both directions. May import wire and the plugin API."""

from __future__ import annotations

import re

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

from headgate_engine.wire import Failed

_PLAIN = {kind.code: kind for kind in (LoadFailed, UpstreamTimeout, Cancelled)}


_FOLDERS = re.compile(r"(?<![\w.:/~-])/(?:[^/\s:'\"()]+/)+")


def without_folders(text: str) -> str:
    """What clients are told: files by their names alone. Where they lie is for operators, who have the log."""
    return _FOLDERS.sub("", text)


def to_wire(request_id: str, error: BaseException, usage: Usage | None = None) -> Failed:
    """The message for an error. One that no backend raises on purpose is the model's failure."""
    if not isinstance(error, BackendError):
        return Failed(
            request_id=request_id,
            code=UpstreamFailed.code,
            message=f"the model failed: {type(error).__name__}: {error}",
            usage=usage,
        )
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded | NotReady) else None
    return Failed(
        request_id=request_id,
        code=error.code,
        message=error.message,
        path=error.path if isinstance(error, InvalidRequest) else None,
        retry_after_ms=None if retry_after_s is None else max(1, round(retry_after_s * 1000)),
        usage=usage,
    )


def from_wire(failed: Failed) -> BackendError:
    """The error that a message stands for, as clients may see it. Unknown codes are the engine's failure."""
    retry_after_s = (failed.retry_after_ms or 1000) / 1000
    if failed.code == InvalidRequest.code:
        return InvalidRequest(failed.message, path=failed.path)
    message = without_folders(failed.message)
    if failed.code == Overloaded.code:
        return Overloaded(message, retry_after_s=retry_after_s)
    if failed.code == NotReady.code:
        return NotReady(message, retry_after_s=retry_after_s)
    if kind := _PLAIN.get(failed.code):
        return kind(message)
    return UpstreamFailed(message, retryable=True)
