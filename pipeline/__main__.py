"""The command `pipeline`, also as `python -m pipeline`. Ctrl-C while its modules are loaded is one line as well."""

import contextlib
import os
import signal
from types import FrameType


def main() -> None:
    """Load it, and run it."""
    # Who starts it in the background may have SIGINT ignored: it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from pipeline.cli import main as command

    command()


def _end(number: int, _: FrameType | None) -> None:
    """End at once; what has something to clean up, such as the demo or a worker, hears signals by itself.

    An exception instead would come out of any import, and some modules in C crash the process by it (orjson).
    """
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
