"""The `pipeline` command. Errors that a person can mend are one message without a traceback, and exit code 2 or 1."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import structlog
import typer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from pydantic import BaseModel, SecretStr
from rich.console import Console
from rich.table import Table

from pipeline.errors import ConfigurationError, PipelineError, StartFailed
from pipeline.settings import CONFIG_FILE, PREFIX, ROLES, Role, Settings, load_settings, masked

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Optimizely decisions over Kafka. Settings come from PIPELINE_* variables and an optional YAML file.",
)  # fmt: skip
topics_app = typer.Typer(no_args_is_help=True, help="The topics: create what is missing, describe what is there.")
app.add_typer(topics_app, name="topics")

log = structlog.get_logger("pipeline.run")

_UNFOLDED = 1000
_Answer = TypeVar("_Answer")
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help=f"YAML file with settings; {CONFIG_FILE} names one as well.", show_default=False),
]


@app.command()
def run(
    config: ConfigFile = None,
    roles: Annotated[
        str | None,
        typer.Option(help=f"Roles of this process, separated by commas: {', '.join(ROLES)}.", show_default=False),
    ] = None,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    Logs are JSON lines on standard error, and so is the reason of a start that fails, except in a terminal.
    """
    from pipeline import assembly, logs, runtime

    # What is wrong with the settings is logged too.
    logs.configure_logs("info")
    try:
        settings = load_settings(file=config)
        if roles is not None:
            settings = _with_roles(settings, roles)
        logs.configure_logs(settings.ops.log_level)
        fence = runtime.Fence(settings.kafka.session_timeout - settings.kafka.heartbeat_interval)
        code = runtime.run(lambda: assembly.run_worker(settings, fence), fence)
    except PipelineError as error:
        if sys.stderr.isatty():
            raise
        # Who collects the lines may drop one that is no JSON.
        for mistake in _mistakes(error):
            log.error(mistake)
        code = _exit_code(error)
    raise typer.Exit(code)


def _with_roles(settings: Settings, roles: str) -> Settings:
    names = [name.strip() for name in roles.split(",") if name.strip()]
    unknown = [name for name in names if name not in ROLES]
    if unknown or not names:
        raise ConfigurationError([f"--roles: {', '.join(unknown) or 'none given'}; there are {', '.join(ROLES)}"])
    chosen: tuple[Role, ...] = tuple(role for role in ROLES if role in names)
    return settings.model_copy(update={"roles": chosen})


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def check_config(
    config: ConfigFile = None,
    topics: Annotated[
        bool, typer.Option("--topics", help="Ask the broker whether the topics are as needed, too.")
    ] = False,
) -> None:
    """Show the settings in effect, secrets masked; every mistake at once."""
    settings = load_settings(file=config)
    if not settings.optimizely.sdk_keys:
        raise ConfigurationError([f"{PREFIX}OPTIMIZELY__SDK_KEYS: name at least one SDK key"])
    console = _console()
    table = Table("setting", "value", box=None, header_style="bold")
    table.add_row(f"{PREFIX}ROLES", ", ".join(settings.roles))
    for name, section in settings:
        if isinstance(section, BaseModel):
            for field, value in section:
                changed = field in section.model_fields_set
                table.add_row(f"{PREFIX}{name}__{field}".upper(), _shown(field, value), style="" if changed else "dim")
    console.print(table)
    if topics:
        _describe(settings, console)


def _console() -> Console:
    """As wide as the terminal; into a pipe nothing is folded, so that one setting or topic is one line."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else _UNFOLDED)


def _shown(field: str, value: object) -> str:
    if field == "sdk_keys" and isinstance(value, tuple):
        return ", ".join(masked(key) for key in value)
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


@topics_app.command("create")
def create(config: ConfigFile = None) -> None:
    """Create the topics that are missing, with equal partition counts, append time and retention."""
    from pipeline.kafka.topics import create_topics

    settings = load_settings(file=config)
    made = asyncio.run(_with_admin(settings, lambda admin: create_topics(admin, settings.kafka, settings.topics)))
    for name, new in made:
        typer.echo(f"{name}: {'created' if new else 'was there already'}")


@topics_app.command("describe")
def describe(config: ConfigFile = None) -> None:
    """Show the topics as they are, and what should be changed. Exit code 1 if anything should."""
    _describe(load_settings(file=config), _console())


def _describe(settings: Settings, console: Console) -> None:
    from pipeline.kafka.topics import describe_topics

    described = asyncio.run(
        _with_admin(settings, lambda admin: describe_topics(admin, settings.kafka, settings.topics))
    )
    table = Table("topic", "partitions", "replicas", "configuration", box=None, header_style="bold")
    for topic in described:
        config = ", ".join(f"{name}={value}" for name, value in topic.config.items())
        table.add_row(topic.name, str(topic.partitions), str(topic.replicas), config)
    console.print(table)
    advice = [f"{topic.name} {sentence}" for topic in described for sentence in topic.advice]
    for sentence in advice:
        console.print(sentence)
    if advice:
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


def _exit_code(error: PipelineError) -> int:
    return 2 if isinstance(error, ConfigurationError) else 1


def main() -> NoReturn:
    """The console command."""
    try:
        app()
    except PipelineError as error:
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
