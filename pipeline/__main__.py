"""The command `pipeline`, also as `python -m pipeline`. Ctrl-C while its modules are loaded is no traceback either."""

import sys


def main() -> None:
    """Load it, and run it."""
    try:
        from pipeline.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
