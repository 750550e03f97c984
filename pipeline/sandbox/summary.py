"""The summary of a run, for a person: tables over `figures`, and nothing that is not in there. Pure.

Called by the demo's display, on a terminal and into a pipe alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pipeline.sandbox.figures import Figures

_STREAM_NAMES = {"decide_requests": "decide requests", "track_events": "conversions", "odp_events": "ODP events"}
_BAR = 12


def summary(figures: Figures) -> RenderableType:
    """Decisions, effort, errors, dead letters, the account, and whether it closes."""
    tables = (
        ("Decisions", _decisions(figures["decisions"])),
        ("What it took", _lines(_effort(figures))),
        ("Answered with an error, or expired", _errors(figures["errors"])),
        ("Dead letters", _dead_letters(figures["dead_letters_of"])),
        ("The account", _lines(_account(figures))),
    )
    return Group(*(_titled(title, table) for title, table in tables if table.row_count), _verdict(figures))


class _Bar:
    """A share as a bar, also where only ASCII can be written."""

    def __init__(self, share: float) -> None:
        self._length = max(1, round(_BAR * share))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        # Narrower where there is no room for it: the words beside it say the same.
        yield Text(("#" if options.ascii_only else "▇") * self._length, style="cyan", no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, self._length)


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(), Text(title, style="bold"), table)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _decisions(decisions: Mapping[str, Mapping[str, int]]) -> Table:
    """A row for each flag and variation; the most frequent variation of a flag first."""
    table = _table("flag", "variation")
    table.add_column("decisions", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    for flag in sorted(decisions):
        counts = sorted(decisions[flag].items(), key=lambda item: (-item[1], item[0]))
        total = sum(count for _, count in counts)
        for place, (variation, count) in enumerate(counts):
            name = Text(variation) if variation else Text("none", style="dim")
            table.add_row(flag if place == 0 else "", name, f"{count:,}", f"{count / total:.0%}", _Bar(count / total))
    return table


def _lines(lines: Iterator[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(2):
        table.add_column(overflow="fold")
    for what, how in lines:
        table.add_row(Text(what), Text(how))
    return table


def _effort(figures: Figures) -> Iterator[tuple[str, str]]:
    segments, logx, odp = figures["segments"], figures["logx"], figures["odp"]
    yield (
        "segments",
        f"{_some(segments['requests'], 'request')} needed the segments of {_some(segments['cold_users'], 'user')} in "
        f"{_some(segments['environments'], 'environment')}. The worker asked ODP for "
        f"{_some(segments['users_looked_up'], 'user')}{_again(segments)} in "
        f"{_some(segments['graphql_requests'], 'GraphQL request')}: {segments['users_per_request']:,} users in each, "
        f"{segments['largest_request']:,} in the largest",
    )
    yield "cache", _cache(segments)
    yield (
        "logx",
        f"{_some(logx.get('events', 0), 'event')} in {_some(logx.get('dispatches', 0), 'dispatch', 'es')}, "
        f"{logx.get('largest_batch', 0):,} in the largest, {_some(logx.get('largest_bytes', 0), 'byte')} at most",
    )
    yield (
        "ODP",
        f"{_some(odp.get('events', 0), 'event')} in {_some(odp.get('event_requests', 0), 'request')}, "
        f"{odp.get('largest_event_batch', 0):,} in the largest",
    )
    yield (
        "throughput",
        f"{_some(figures['sent']['decide_requests'], 'request')} answered in {figures['seconds']:,} s: "
        f"{figures['requests_per_second']:,} a second from the first request sent to the last result read, while "
        "impressions and events are delivered. Broker, stand-ins and worker share this machine",
    )


def _cache(segments: Mapping[str, Any]) -> str:
    """After a kill there are more than requests: what was not committed is done again, with another cache."""
    shared = segments["shared_lookups"]
    said = f"{_some(shared, 'look-up')} shared the answer to another of their user; " if shared else ""
    said += f"the worker's cache answered {_some(segments['cache_hits'], 'look-up')}"
    hits_of = segments["cache_hits_of"]
    if len(hits_of) < 2:
        return said
    each = " + ".join(f"{hits:,} in {worker}" for worker, hits in hits_of.items())
    return f"{said}: {each}, whose cache began empty and which repeated the requests that were not committed"


def _again(segments: Mapping[str, Any]) -> str:
    """More look-ups than users: past the cache (IGNORE_CACHE), or after a kill."""
    again = segments["users_looked_up_again"]
    return f" ({again:,} of them again)" if again else ""


def _some(count: int, singular: str, ending: str = "s") -> str:
    return f"{count:,} {singular}{'' if count == 1 else ending}"


def _same(count: int, other: int) -> str:
    """What stands between two numbers that should be equal."""
    return "=" if count == other else "but"


def _errors(errors: Mapping[str, int]) -> Table:
    table = _table("error")
    table.add_column("requests", justify="right")
    for error, count in sorted(errors.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(Text(error), f"{count:,}")
    return table


def _dead_letters(dead_letters_of: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("of", "reason")
    table.add_column("records", justify="right")
    for stream, reasons in dead_letters_of.items():
        counts = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        for place, (reason, count) in enumerate(counts):
            table.add_row(_STREAM_NAMES[stream] if place == 0 else "", reason, f"{count:,}")
    return table


def _account(figures: Figures) -> Iterator[tuple[str, str]]:
    sent, requests, logx, odp = figures["sent"], figures["requests"], figures["logx"], figures["odp"]
    dead = {stream: sum(reasons.values()) for stream, reasons in figures["dead_letters_of"].items()}
    asked, sources = sent["decide_requests"], figures["distinct_sources"]
    yield (
        "decide requests",
        f"{asked:,} sent {_same(asked, sources)} {sources:,} accounted for: "
        f"{requests['result']:,} decided + {requests['result with error']:,} answered with an error + "
        f"{requests['expired']:,} expired + {_some(requests['dead letter'], 'dead letter')}",
    )
    due, impressions = figures["impressions_due"], logx.get("impressions", 0)
    yield (
        "impressions",
        f"{due:,} due {_same(due, impressions)} {impressions:,} distinct at logx "
        f"({_some(logx.get('repeats', 0), 'repeat')} on the wire)",
    )
    converted, conversions = sent["track_events"], logx.get("conversions", 0)
    yield (
        "conversions",
        f"{converted:,} sent {_same(converted, conversions + dead['track_events'])} "
        f"{conversions:,} at logx + {_some(dead['track_events'], 'dead letter')}",
    )
    events, there = sent["odp_events"], odp.get("distinct_events", 0)
    yield (
        "ODP events",
        f"{events:,} sent {_same(events, there + dead['odp_events'])} "
        f"{there:,} at ODP + {_some(dead['odp_events'], 'dead letter')} "
        f"({_some(odp.get('repeated_events', 0), 'repeat')} on the wire)",
    )
    yield (
        "dead letters",
        f"{_some(sum(dead.values()), 'record')} ({_some(figures['second_dead_letters'], 'repeat')} in the topic)",
    )
    if figures["kills"]:
        yield "killed with -9", f"{_some(figures['kills'], 'worker')}, while a POST to logx was under way"


def _verdict(figures: Mapping[str, Any]) -> RenderableType:
    if figures["closed"]:
        text = Text("The account closes: every record has one outcome, every event was counted once.", style="green")
    else:
        lines = ["The account does not close:", *(f"  {fault}" for fault in figures["open"])]
        text = Text("\n".join(lines), style="bold red")
    return Group(Text(), text)
