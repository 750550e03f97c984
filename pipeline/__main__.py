"""The command `pipeline`, also as `python -m pipeline`. Ctrl-C while its modules are loaded is one line as well."""

import contextlib
import os
import signal
from types import FrameType


def main() -> None:
    """Load it, and run it."""
    # A script that starts the command in the background ignores SIGINT for it: it stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from pipeline.cli import main as command

    command()


def _end(number: int, _: FrameType | None) -> None:
    """End at once. Commands with something to clean up, such as the demo and a worker, hear signals by themselves.

    An exception instead would come out of any import, and some modules in C crash the process by it (orjson).
    """
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
