"""Structured logs on stderr: JSON lines, or text where a person watches.

Both our own loggers (`structlog.get_logger()`) and those of libraries (`logging`) come out in the same form.
A log line never ends a process: a closed or full stderr loses lines, nothing else. May import structlog.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from headgate_gateway.settings import Log

_QUIET: Final[Mapping[str, int]] = {
    **dict.fromkeys(("asyncio", "httpx", "urllib3", "alembic"), logging.WARNING),
    "uvicorn": logging.ERROR,  # its warnings are of what clients sent, which they are told and we count
}
"""From which level on libraries are worth reading."""


class Stderr:
    """Today's `sys.stderr`, whatever replaced it meanwhile (a progress bar does); failing writes are dropped."""

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        """Flush, or not."""
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            return


def is_text(log: Log) -> bool:
    """Whether logs are for a person: by the config, or because stderr is a terminal."""
    return log.format == "text" or (log.format == "auto" and sys.stderr.isatty())


def configure(log: Log, process: str) -> None:
    """Set up logging of this process.

    Args:
        log: The config's `[log]`.
        process: What each line names: `supervisor`, `ledger`, `worker 0`.
    """
    level = logging.getLevelNamesMapping()[log.level.upper()]

    def name_process(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        line.setdefault("process", process)
        return line

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        name_process,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if is_text(log):
        last: list[Any] = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            )
        ]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=Stderr()),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(Stderr())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, least))
