"""The summary of a run, for a person: tables over `figures`, and nothing that is not in there. Pure.

Called by the demo's display, on a terminal and into a pipe alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.sandbox.figures import Figures

_STREAM_NAMES = {"decide_requests": "decide requests", "track_events": "conversions", "odp_events": "ODP events"}
_BAR = 12


def summary(figures: Figures) -> RenderableType:
    """What was decided, what it took, what could not be decided or processed, the account, whether it closes."""
    return Group(
        _titled("Decisions", _decisions(figures["decisions"])),
        _titled("What it took", _lines(_effort(figures))),
        _titled("Answered with an error", _errors(figures["errors"])),
        _titled("Dead letters", _dead_letters(figures["dead_letters_of"])),
        _titled("The account", _lines(_account(figures))),
        _verdict(figures),
    )


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(), Text(title, style="bold"), table)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
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
            bar = Text("▇" * max(1, round(_BAR * count / total)), style="cyan")
            table.add_row(flag if place == 0 else "", name, f"{count:,}", f"{count / total:.0%}", bar)
    return table


def _lines(lines: Iterator[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for what, how in lines:
        table.add_row(Text(what), Text(how))
    return table


def _effort(figures: Figures) -> Iterator[tuple[str, str]]:
    segments, logx, odp = figures["segments"], figures["logx"], figures["odp"]
    yield (
        "segments",
        f"{segments['requests']:,} requests needed those of {segments['cold_users']:,} users: "
        f"{segments['graphql_requests']:,} GraphQL requests, {segments['users_per_request']:,} users each, "
        f"at most {segments['largest_request']:,}",
    )
    yield "cache", f"{segments['cache_hits']:,} look-ups answered from it"
    yield (
        "logx",
        f"{logx.get('events', 0):,} events in {logx.get('dispatches', 0):,} dispatches, "
        f"at most {logx.get('largest_batch', 0):,} in one, {logx.get('largest_bytes', 0):,} bytes",
    )
    yield (
        "ODP",
        f"{odp.get('events', 0):,} events in {odp.get('event_requests', 0):,} requests, "
        f"at most {odp.get('largest_event_batch', 0):,} in one",
    )
    yield (
        "throughput",
        f"{figures['sent']['decide_requests']:,} requests answered in {figures['seconds']:,} s, "
        f"{figures['requests_per_second']:,} a second, everything on this machine",
    )


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
    yield (
        "decide requests",
        f"{sent['decide_requests']:,} sent = {figures['distinct_sources']:,} distinct sources: "
        f"{requests['result']:,} decided + {requests['result with error']:,} answered with an error + "
        f"{requests['expired']:,} expired + {requests['dead letter']:,} dead letters",
    )
    yield (
        "impressions",
        f"{figures['impressions_due']:,} due = {logx.get('impressions', 0):,} distinct at logx "
        f"({logx.get('repeats', 0):,} repeats on the wire)",
    )
    yield (
        "conversions",
        f"{sent['track_events']:,} sent = {logx.get('conversions', 0):,} at logx + {dead['track_events']:,} "
        "dead letters",
    )
    yield (
        "ODP events",
        f"{sent['odp_events']:,} sent = {odp.get('distinct_events', 0):,} at ODP + {dead['odp_events']:,} dead letters "
        f"({odp.get('repeated_events', 0):,} repeats on the wire)",
    )
    if figures["kills"]:
        yield "killed with -9", f"{figures['kills']:,} worker, while a POST to logx was under way"


def _verdict(figures: Mapping[str, Any]) -> RenderableType:
    if figures["closed"]:
        text = Text("The account closes: every record has one outcome, every event was counted once.", style="green")
    else:
        lines = ["The account does not close:", *(f"  {fault}" for fault in figures["open"])]
        text = Text("\n".join(lines), style="bold red")
    return Group(Text(), text)
