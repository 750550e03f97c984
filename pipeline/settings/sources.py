"""Where values come from: a YAML file, above it the environment, above that an option of the command.

Names are sorted out here: what is no setting is a mistake, with the name that may be meant. Only a variable that looks
like another program's, such as Kubernetes' links to Services, is a warning: it comes from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.settings.names import (
    CONFIG_FILE,
    SECTIONS,
    SETTINGS,
    is_password,
    likely,
    likely_in,
    likely_section,
    likely_variable,
    may_be_empty,
    variable,
)
from pipeline.settings.sections import PREFIX

_LINK = re.compile(r"PIPELINE_(\w+_)??(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
# A name such as PIPELINE_OPS_PORT may also be a setting misspelled: the value tells.
_LINK_BY_VALUE = re.compile(r"PIPELINE_(\w+_)??PORT=(tcp|udp|sctp)://.*")
_LIKE_ANY = 0.6
ENVIRONMENT = "environment"
EMPTY = "is empty: leave it out for its default"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from: the place, and the setting's name as it is spelled there."""

    place: str
    spelled: str

    @property
    def name(self) -> str:
        """The name that a mistake begins with: with the line, where it is in a file."""
        return self.spelled if self.place in (ENVIRONMENT, self.spelled) else f"{self.place}: {self.spelled}"


@dataclass(slots=True)
class Sources:
    """All values as they were written, by setting, with their origins."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    """Settings whose values are among the mistakes."""
    warnings: list[str] = field(default_factory=list)
    complete: bool = True
    """False where a file could not be read: what is missing may be in it."""

    def put(self, setting: str, value: Any, origin: Origin) -> None:
        self.values[setting] = value
        self.origins[setting] = origin

    def refuse(self, setting: str, origin: Origin, text: str) -> None:
        self.refused.add(setting)
        self.mistakes.append(f"{origin.name}: {text}")

    def lose(self, mistake: str) -> None:
        """A whole file cannot be used."""
        self.complete = False
        self.mistakes.append(mistake)

    def name_of(self, setting: str) -> str:
        """The name as the person would spell it: as its section is spelled, in the environment if nowhere."""
        if setting in self.origins:
            return self.origins[setting].spelled
        section = f"{setting.split('.')[0]}."
        places = {one.place for name, one in self.origins.items() if name.startswith(section)}
        return setting if places and ENVIRONMENT not in places else variable(setting)


def read_sources(environ: Mapping[str, str], file: Path | None, roles: str | None) -> Sources:
    """Everything that is set. Never raises for what is written there: see `mistakes`."""
    sources = Sources()
    if file is None and CONFIG_FILE in environ:
        if environ[CONFIG_FILE].strip():
            file = Path(environ[CONFIG_FILE].strip())
        else:
            sources.mistakes.append(f"{CONFIG_FILE}: is empty: leave it out where there is no file")
    if file is not None:
        _read_file(file, sources)
    _read_environment(environ, sources)
    if roles is not None:
        sources.put("roles", roles, Origin("--roles", "--roles"))
    return sources


# The environment


def _read_environment(environ: Mapping[str, str], sources: Sources) -> None:
    links = []
    seen: dict[str, str] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name == CONFIG_FILE:
            continue
        setting = name.removeprefix(PREFIX).lower().replace("__", ".", 1)
        if setting in SETTINGS:
            if setting in seen:
                sources.mistakes.append(f"{name}: is set as {seen[setting]}, too: leave one of them out")
            seen[setting] = name
            _take_variable(setting, text, sources)
        elif "__" not in name and (_LINK.fullmatch(name) or _LINK_BY_VALUE.fullmatch(f"{name}={text}")):
            links.append(name)
        else:
            _unknown_variable(name, setting, sources)
    if links:
        shown = f"{', '.join(links[:2])}{f' and {len(links) - 2} more' if len(links) > 2 else ''}"
        sources.warnings.append(
            f"{shown}: no settings, but Kubernetes' links to a Service; set `enableServiceLinks: false` for the pod"
        )


def _take_variable(setting: str, text: str, sources: Sources) -> None:
    origin = Origin(ENVIRONMENT, variable(setting))
    bare = text.strip()
    if not bare and not may_be_empty(setting):
        sources.refuse(setting, origin, EMPTY)
    elif len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'" and not is_password(setting):
        sources.refuse(setting, origin, "its value is in quotes, which count as part of it: leave them out")
    else:
        sources.put(setting, text, origin)


def _unknown_variable(name: str, setting: str, sources: Sources) -> None:
    section, _, rest = setting.partition(".")
    if section in SECTIONS and not rest:
        sources.mistakes.append(f"{name}: is a section; name a setting in it, as {name}__...")
    elif section in SECTIONS:
        meant = likely_in(section, rest)
        sources.mistakes.append(f"{name}: {_no_such(variable(meant) if meant else None)}")
    elif near := likely_variable(name):
        sources.mistakes.append(f"{name}: {_no_such(near)}")
    else:
        sources.warnings.append(f"{name}: {_no_such(likely_variable(name, _LIKE_ANY))}")


def _no_such(meant: str | None) -> str:
    advice = f"; did you mean {meant}?" if meant else " (`pipeline check-config` lists all)"
    return f"no such setting{advice}"


# The file


def _read_file(file: Path, sources: Sources) -> None:
    try:
        document, lines = _parsed(file, sources)
    except OSError as error:
        sources.lose(f"{file}: cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        sources.lose(f"{file}: not UTF-8")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        sources.lose(f"{file}: not YAML{_yaml_fault(error)}")
    else:
        _take_document(file, document, lines, sources)


def _parsed(file: Path, sources: Sources) -> tuple[Any, dict[str, int]]:
    """The document, and the lines on which its sections and settings are. A name that is there twice is a mistake."""
    loader = yaml.SafeLoader(file.read_text("utf-8-sig"))
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        _number(node, "", lines, file, sources)
        return (loader.construct_document(node) if node is not None else None), lines
    finally:
        loader.dispose()


def _number(node: yaml.Node | None, above: str, lines: dict[str, int], file: Path, sources: Sources) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = f"{above}{key.value}", key.start_mark.line + 1
        if name in lines:
            sources.mistakes.append(f"{file}:{line}: {name}: is there twice, first on line {lines[name]}")
        lines.setdefault(name, line)
        if not above:
            _number(value, f"{name}.", lines, file, sources)


def _yaml_fault(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f", line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return f": {' '.join(str(error).split())}"


def _take_document(file: Path, document: Any, lines: Mapping[str, int], sources: Sources) -> None:
    def place(name: str) -> str:
        return f"{file}:{lines[name]}" if name in lines else str(file)

    if document is None:
        return
    if not isinstance(document, dict):
        sources.lose(f"{file}: must be a mapping of sections, such as `kafka:` with its settings below")
        return
    for key, content in document.items():
        name = str(key)
        if name in SECTIONS and isinstance(content, dict):
            _take_section(name, content, place, sources)
        elif name in SETTINGS and "." not in name:
            sources.put(name, content, Origin(place(name), name))
        elif name not in SECTIONS:
            sources.mistakes.append(f"{place(name)}: {name}: {_no_such_in_file(name, content)}")
        elif content is not None:
            sources.mistakes.append(f"{place(name)}: {name}: is a section: its settings stand below it, indented")


def _take_section(section: str, content: Mapping[Any, Any], place: Callable[[str], str], sources: Sources) -> None:
    for key, value in content.items():
        setting = f"{section}.{key}"
        if setting in SETTINGS:
            sources.put(setting, value, Origin(place(setting), setting))
        else:
            sources.mistakes.append(f"{place(setting)}: {setting}: {_no_such(likely_in(section, str(key)))}")


def _no_such_in_file(name: str, content: Any) -> str:
    meant = likely_section(name) if isinstance(content, dict) else None
    if meant:
        return f"no such section; did you mean {meant}?"
    setting = likely(name, _LIKE_ANY)
    if setting is None or "." not in setting:
        return _no_such(setting)
    section, _, inner = setting.partition(".")
    return f"no such section; did you mean `{inner}` below `{section}:`?"
