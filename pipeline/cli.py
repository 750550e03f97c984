"""The `pipeline` command. Errors that a person can mend are one message without a traceback, and exit code 2 or 1."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import orjson
import structlog
import typer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import ConfigurationError, PipelineError, StartFailed
from pipeline.settings import (
    CONFIG_FILE,
    ROLES,
    Loaded,
    Settings,
    effective_settings,
    load,
    needed_by_a_worker,
    usable_files,
    without_effect,
)
from pipeline.terminal import Command, Group, call
from pipeline.version import NAME, versions

if TYPE_CHECKING:
    from pipeline.kafka.topics import Described

app = typer.Typer(
    cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Optimizely decisions over Kafka. Settings come from PIPELINE_* variables and an optional YAML file.",
)  # fmt: skip
topics_app = typer.Typer(
    cls=Group, no_args_is_help=True, help="The topics: create what is missing, describe what is there."
)
app.add_typer(topics_app, name="topics")

log = structlog.get_logger("pipeline.run")

_UNFOLDED = 1000
_VALUE_WIDTH = 48
_Answer = TypeVar("_Answer")
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help=f"YAML file with settings; {CONFIG_FILE} names one as well.", show_default=False),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        found = versions()
        typer.echo(f"{NAME} {found['version']} (Python {found['python']}, aiokafka {found['aiokafka']})")
        raise typer.Exit()


@app.callback()
def pipeline(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version, Python's too, and exit."
        ),
    ] = False,
) -> None:
    del version  # Its callback has shown it.


@app.command(cls=Command)
def run(
    config: ConfigFile = None,
    roles: Annotated[
        str | None,
        typer.Option(help=f"Roles of this process, separated by commas: {', '.join(ROLES)}.", show_default=False),
    ] = None,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    Logs, and the reason of a start that fails, go to standard error:
    as JSON lines, or readable in a terminal (PIPELINE_OPS__LOG_FORMAT).

    Exit codes: 0 stopped as asked, 1 the start failed, 2 wrong settings,
    70 the process gave up.
    """
    from pipeline import assembly, logs, runtime

    # What is wrong with the settings is logged too.
    logs.configure_logs("info")
    try:
        loaded = _load_for_worker(config, roles)
        settings = loaded.settings
        logs.configure_logs(settings.ops.log_level, settings.ops.log_format)
        for warning in loaded.warnings:
            log.warning(warning)
        fence = runtime.Fence(settings.kafka.session_timeout - settings.kafka.heartbeat_interval)
        code = runtime.run(lambda: assembly.run_worker(settings, fence), fence)
    except PipelineError as error:
        if sys.stderr.isatty():
            raise
        # A collector of the lines may drop one that is no JSON.
        for warning in _warnings(error):
            log.warning(warning)
        for mistake in _mistakes(error):
            log.error(mistake)
        code = _exit_code(error)
    raise typer.Exit(code)


def _load_for_worker(config: Path | None, roles: str | None = None) -> Loaded:
    """Every mistake that would end a worker before it asks for a broker."""
    return load(file=config, roles=roles, checks=(needed_by_a_worker, usable_files), advice=(without_effect,))


def _load_for_topics(config: Path | None) -> Settings:
    loaded = load(file=config, checks=(usable_files,), advice=(without_effect,))
    _warn(loaded)
    return loaded.settings


def _warn(loaded: Loaded) -> None:
    for warning in loaded.warnings:
        typer.echo(f"warning: {warning}", err=True)


@app.command(cls=Command)
def decide(
    datafile: Annotated[Path, typer.Option(help="The datafile to decide by.")],
    segments: Annotated[
        Path | None, typer.Option(help="JSON object: user id -> list of the user's segments.", show_default=False)
    ] = None,
    profiles: Annotated[
        Path | None,
        typer.Option(
            help="Keep sticky profiles, beginning with these: user id -> experiment id -> object with variation_id.",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="What CMAB predicts: JSON object, user id -> rule id -> variation id.", show_default=False),
    ] = None,
) -> None:
    """Decide requests read as JSON lines from standard input, one result line for each, in order; no network."""
    from pipeline.offline import People, decide_lines

    people = People(*(None if path is None else _read(path) for path in (segments, profiles, predictions)))
    for line in decide_lines(sys.stdin.buffer, _read(datafile), people):
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()


@app.command(cls=Command)
def demo(
    requests: Annotated[int, typer.Option(min=1, help="Decide requests to produce.")] = 20_000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.", show_default=False)
    ] = None,
    kill: Annotated[
        bool, typer.Option("--kill", help="Kill the worker with -9 while a POST to logx is under way.")
    ] = False,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave everything up after the summary, until Ctrl-C.")
    ] = False,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(
            help="Use this Kafka instead of starting one, by a listener without TLS and password.", show_default=False
        ),
    ] = None,
) -> None:
    """Run the whole product on this machine, on Apache Kafka, and account for every record.

    Exit code 0 only if the account closes.
    """
    from pipeline.sandbox.demo import Plan, run_demo

    plan = Plan(
        requests=requests, bootstrap_servers=bootstrap_servers, json_file=json_file, kill=kill,
        keep_running=keep_running,
    )  # fmt: skip
    raise typer.Exit(run_demo(plan))


@app.command(cls=Command)
def sandbox(
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Start Apache Kafka as well, at port 9092 if free, with the topics made.")
    ] = False,
    port_base: Annotated[
        int | None,
        typer.Option(
            min=1024,
            max=65_530,
            show_default="free ports",
            help="First of the ports: CDN, ODP, logx, CMAB, Kafka, one after the other.",
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="For load: ODP answers without executing GraphQL.")] = False,
) -> None:
    """Run stand-ins for Optimizely's services, without a worker, until Ctrl-C.

    Prints the settings and the command of a worker that uses them, and a request, to paste into other terminals.
    Everything listens on 127.0.0.1. GET /control of a stand-in lists the faults it can be ordered to have.
    """
    from pipeline.sandbox.services import Sandbox, run_sandbox

    odp_arguments = ("--fast",) if fast else ()
    raise typer.Exit(run_sandbox(Sandbox(kafka=kafka, port_base=port_base, odp_arguments=odp_arguments)))


@app.command(cls=Command)
def check_config(
    config: ConfigFile = None,
    topics: Annotated[
        bool, typer.Option("--topics", help="Ask the broker whether the topics are as needed, too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON document: settings, warnings, or the mistakes.")
    ] = False,
) -> None:
    """Show the settings in effect and where each comes from, secrets masked; every mistake at once.

    `*` marks a value that is not the default.

    Exit codes: 0 a worker takes these settings, 2 it does not,
    1 the broker or a topic is not as needed (--topics).
    """
    try:
        loaded = _load_for_worker(config)
    except ConfigurationError as error:
        if not as_json:
            raise
        _print_json({"valid": False, "mistakes": list(error.mistakes), "warnings": list(error.warnings)})
        raise typer.Exit(2) from None
    if as_json:
        document, code = _document(loaded, topics)
        _print_json(document)
        raise typer.Exit(code)
    _warn(loaded)
    _print_settings(loaded)
    if topics:
        _print_topics(_described(loaded.settings))


def _document(loaded: Loaded, topics: bool) -> tuple[dict[str, Any], int]:
    """The settings, and the topics where they are asked for, as JSON knows them; with the exit code."""
    settings = [one.document() for one in effective_settings(loaded)]
    document: dict[str, Any] = {"valid": True, "warnings": list(loaded.warnings), "settings": settings}
    if not topics:
        return document, 0
    try:
        described = _described(loaded.settings)
    except StartFailed as error:
        return document | {"error": str(error)}, 1
    return document | {"topics": [asdict(topic) for topic in described]}, 1 if _advice(described) else 0


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def _print_settings(loaded: Loaded) -> None:
    """One line a setting, never cut: a terminal folds what is too long for it."""
    console = Console(soft_wrap=True, highlight=False)
    rows = [("*" if one.changed else " ", one.variable, one.text, one.place) for one in effective_settings(loaded)]
    rows.insert(0, (" ", "setting", "value", "from"))
    # A long list of hosts does not push the last column away from all other lines.
    widths = [max(len(row[1]) for row in rows), min(max(len(row[2]) for row in rows), _VALUE_WIDTH)]
    for number, (mark, name, value, place) in enumerate(rows):
        line = f"{mark} {name:<{widths[0]}}  {value:<{widths[1]}}  {place}"
        console.print(Text(line, style="bold" if mark == "*" or number == 0 else "dim"))


@topics_app.command("create", cls=Command)
def create(config: ConfigFile = None) -> None:
    """Create the topics that are missing, with equal partition counts, append time and retention."""
    from pipeline.kafka.topics import create_topics

    settings = _load_for_topics(config)
    made = asyncio.run(_with_admin(settings, lambda admin: create_topics(admin, settings.kafka, settings.topics)))
    for name, new in made:
        typer.echo(f"{name}: {'created' if new else 'was there already'}")


@topics_app.command("describe", cls=Command)
def describe(config: ConfigFile = None) -> None:
    """Show the topics as they are, and what should be changed. Exit code 1 if anything should."""
    _print_topics(_described(_load_for_topics(config)))


def _described(settings: Settings) -> list[Described]:
    from pipeline.kafka.topics import describe_topics

    return list(
        asyncio.run(_with_admin(settings, lambda admin: describe_topics(admin, settings.kafka, settings.topics)))
    )


def _advice(described: Sequence[Described]) -> list[str]:
    return [f"{topic.name} {sentence}" for topic in described for sentence in topic.advice]


def _print_topics(described: Sequence[Described]) -> None:
    """Exit code 1 if anything should be changed."""
    # Into a pipe nothing is folded, so that one topic is one line.
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else _UNFOLDED)
    table = Table("topic", "partitions", "replicas", "configuration", box=None, header_style="bold")
    for topic in described:
        config = ", ".join(f"{name}={value}" for name, value in topic.config.items())
        table.add_row(topic.name, str(topic.partitions), str(topic.replicas), config)
    console.print(table)
    for sentence in _advice(described):
        console.print(sentence)
    if _advice(described):
        raise typer.Exit(1)


async def _with_admin(settings: Settings, ask: Callable[[AIOKafkaAdminClient], Awaitable[_Answer]]) -> _Answer:
    from pipeline.kafka import client

    admin = await client.start_client(client.admin(settings.kafka))
    try:
        return await ask(admin)
    except KafkaError as error:
        raise StartFailed(f"the broker refused: {error}") from error
    finally:
        await client.stop_client(admin)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot be read: {error.strerror}"]) from error


def _mistakes(error: PipelineError) -> Sequence[str]:
    return error.mistakes if isinstance(error, ConfigurationError) else [str(error)]


def _warnings(error: PipelineError) -> Sequence[str]:
    return error.warnings if isinstance(error, ConfigurationError) else ()


def _exit_code(error: PipelineError) -> int:
    return 2 if isinstance(error, ConfigurationError) else 1


def main() -> NoReturn:
    """The console command."""
    try:
        code = call(typer.main.get_command(app))
    except PipelineError as error:
        for warning in _warnings(error):
            print(f"warning: {warning}", file=sys.stderr)  # noqa: T201 - this is the command's own output
        for mistake in _mistakes(error):
            print(f"error: {mistake}", file=sys.stderr)  # noqa: T201 - this is the command's own output
        code = _exit_code(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        written = error.filename or "the output"
        print(f"error: no room for {written}: free some, or write to another disk", file=sys.stderr)  # noqa: T201
        # What could not be written is still in the buffer, and would be tried again at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
