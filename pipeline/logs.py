"""Logs on standard error, this package's and aiokafka's alike: one JSON object a line, or lines for a person.

ERROR: data is lost or a person is needed. WARNING: surprising, recovered. INFO: lifecycle. Records only at DEBUG.
No user id, attribute or whole key is ever logged.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal, TextIO

import structlog

_SHARED = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure_logs(level: str, form: Literal["json", "pretty"] | None = None) -> None:
    """Send everything at `level` or above to standard error. Called by the command that runs a worker.

    Without a `form` it is `pretty` in a terminal: pods, pipes and files get JSON.
    """
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_pretty(sys.stderr) if (form or _usual(sys.stderr)) == "pretty" else _json(sys.stderr)),
            ],
            foreign_pre_chain=_SHARED,
        )
    )
    handler.addFilter(_Repeats())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # At DEBUG aiokafka logs every record that it sends, key and value.
    logging.getLogger("aiokafka").setLevel(max(root.level, logging.INFO))


def _usual(stream: TextIO) -> Literal["json", "pretty"]:
    return "pretty" if stream.isatty() else "json"


def _json(stream: TextIO) -> list[structlog.typing.Processor]:
    # Characters as they are where the stream has them: a masked SDK key begins with `…`, and is searched for.
    escaped = stream.encoding.lower() not in ("utf-8", "utf8")
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=escaped)]


def _pretty(stream: TextIO) -> list[structlog.typing.Processor]:
    # A traceback as Python prints it. The renderer's own shows local variables, which hold users and keys.
    colors = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return [
        structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback, sort_keys=False)
    ]


class _Repeats(logging.Filter):
    """Lets a text of aiokafka pass once in ten seconds.

    While a broker is away it reports each of ten attempts a second, from several tasks.
    """

    _seconds = 10.0

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("aiokafka"):
            return True
        last = self._last.get(record.msg)
        if last is not None and record.created - last < self._seconds:
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[record.msg] = record.created
        return True
