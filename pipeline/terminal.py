"""How the command looks to a person: help in which an option without a value shows none, and mistakes in one line.

Typer draws a mistake in the command line as a box of several lines, and the type of a flag as if it took a value.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from pipeline.errors import ConfigurationError


class Command(TyperCommand):
    """A command whose help shows flags as flags."""

    def get_params(self, ctx: Any) -> Any:
        return _plain_flags(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands whose help shows flags as flags."""

    def get_params(self, ctx: Any) -> Any:
        return _plain_flags(super().get_params(ctx))


def _plain_flags(params: Any) -> Any:
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag:
            param.metavar = ""
    return params


def call(group: Any) -> int:
    """Run the command line; its exit code. Raises ConfigurationError for a command or an option that there is not."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A value may hold a character that the output has not.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = group(prog_name="pipeline", standalone_mode=False)
    except TyperException as error:
        told = error.format_message()
        if not told:
            # Called without a command: its help was shown instead.
            return error.exit_code
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "pipeline"
        raise ConfigurationError([f"{' '.join(told.split()).rstrip('.')} (see `{command} --help`)"]) from None
    return code if isinstance(code, int) else 0
