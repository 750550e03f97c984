"""The worker with one record that kills it, as a fault in a library would: `python -m tests.flows.deadly_worker run`.

A value with the marker ends the process where it is decoded, before anything could be said about it.
"""

from __future__ import annotations

import os
import signal

from pipeline import cli
from pipeline.handlers import decide
from pipeline.messages.decide import DecideRequest, parse_decide_request

MARKER = b"this kills"


def _parse(value: bytes | None, *, max_bytes: int, max_keys: int) -> DecideRequest:
    if value is not None and MARKER in value:
        os.kill(os.getpid(), signal.SIGKILL)
    return parse_decide_request(value, max_bytes=max_bytes, max_keys=max_keys)


if __name__ == "__main__":
    vars(decide)["parse_decide_request"] = _parse
    cli.main()
