"""Configures belljar's own log: on stderr, as text for people or JSON for collectors."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, ExcInfo

from belljar.cli.printing import printable, printable_lines
from belljar.settings.logs import LogSettings


class _Log:
    """Writes to stderr. A log that cannot be written (closed pipe, full disk) is dropped."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


class _Formatter(logging.Formatter):
    """Escapes control characters: an error message may quote a guest or a tenant."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _escape(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


def _write_traceback(out: TextIO, error: ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, error)
    out.write(printable_lines(text.getvalue()))


def start_logging(settings: LogSettings, level_name: str | None = None) -> None:
    """Configure structlog, and the loggers of the libraries that use the standard one."""
    level = getattr(logging, (level_name or settings.log_level).upper())
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer = (
        # Not rich's tracebacks: they print every local variable, keys included, and take seconds.
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)
        if as_text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escape if as_text else structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Log())),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    # QMP connections end with their machines; that is normal.
    logging.getLogger("qemu").setLevel(logging.CRITICAL)
