"""README.md says what is so: its examples run, its tables are complete, and whatever it names is there."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from pipeline.kafka.topics import topics_of
from pipeline.limits import Backoff
from pipeline.messages import decide as decide_messages
from pipeline.messages import words
from pipeline.messages.contracts import DECIDE_REQUEST, DECIDE_RESULT, MAX_NESTING, schemas_directory
from pipeline.messages.decide import parse_decide_request
from pipeline.metrics import Metrics
from pipeline.project import compile_datafile
from pipeline.runtime import EXIT_GAVE_UP
from pipeline.sandbox.project_data import PRODUCTION, datafiles
from pipeline.settings import ROLES, Settings, load_settings
from tests.messages.reasons import TOPICS, reasons
from tests.patience import PATIENCE
from tests.readme import RULES, current

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
WALK = "A decide request in five files"
FIVE = {
    "pipeline/kafka/partition.py",
    "pipeline/handlers/decide.py",
    "pipeline/odp/segments.py",
    "pipeline/decision/decider.py",
    "pipeline/kafka/sink.py",
}


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n", README, re.MULTILINE)
    assert found is not None, f"README.md has no section {title!r}"
    rest = README[found.end() :]
    end = re.search(rf"^#{{2,{len(found[1])}}} ", _without_blocks(rest), re.MULTILINE)
    return rest[: end.start()] if end else rest


def _without_blocks(text: str) -> str:
    """The same length, with code blocks blanked: a `#` in them begins no heading."""
    return re.sub(r"```.*?```", lambda block: re.sub(r"[^\n]", " ", block[0]), text, flags=re.DOTALL)


def blocks(language: str, title: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", _without_blocks(text))


@cache
def definitions(path: str) -> frozenset[str]:
    """Classes, functions, methods (`Class.method`) and names assigned in a module."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found.add(prefix + node.name)
                collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + node.name)
            elif isinstance(node, ast.Assign):
                found.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))

    collect(ast.parse((ROOT / path).read_text("utf-8")).body, "")
    return frozenset(found)


def walked() -> Iterator[tuple[str, str]]:
    """Each step of the walk: its file, its text."""
    for step in re.split(r"^\d+\. ", section(WALK), flags=re.MULTILINE)[1:]:
        found = re.match(r"\*\*`([^`]+)`\*\*", step)
        assert found is not None, f"a step names no file: {step[:40]}"
        yield found[1], step[found.end() :]


def test_the_walk_goes_through_exactly_five_files() -> None:
    assert {path for path, _ in walked()} == FIVE


def test_the_walk_names_what_is_in_its_files() -> None:
    named = [(path, span.removesuffix("()")) for path, step in walked() for span in code_spans(step)]
    assert len(named) > 20
    assert [(path, name) for path, name in named if name not in definitions(path)] == []


def test_every_path_named_is_there() -> None:
    pattern = r"`((?:pipeline|tests|schemas|\.ci)/[\w./-]*)(?:::\w+)?`|\]\((?!#)([\w./-]+)\)"
    paths = {one or other for one, other in re.findall(pattern, README)}
    assert len(paths) > 15
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_test_named_as_a_proof_is_there() -> None:
    proofs = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README)
    assert len(proofs) > 10
    assert [(path, name) for path, name in proofs if name not in definitions(path)] == []


def test_every_link_within_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.+)$", _without_blocks(README), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", README) if link not in anchors] == []


def test_every_target_of_make_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    spans = [*code_spans(README), *blocks("sh", "Two commands")[0].splitlines()]
    named = {found[1] for span in spans if (found := re.match(r"make ([a-z][a-z-]*)", span))}
    assert named >= {"demo", "test", "faults", "check"}
    assert named - targets == set()


def test_every_setting_named_is_there() -> None:
    table = section("Settings")
    prose = README.replace(table, "")
    named = set(re.findall(r"\bPIPELINE_[A-Z]+(?:__[A-Z_]*[A-Z])?\b(?!_)", prose)) - {
        "PIPELINE_TEST",
        "PIPELINE_TOPICS",
    }
    assert len(named) > 20
    assert [name for name in sorted(named) if f"`{name}`" not in table] == []


def test_every_metric_named_is_there() -> None:
    collectors = [one for one in vars(Metrics(CollectorRegistry())).values() if not isinstance(one, CollectorRegistry)]
    labels = {collector._name: set(collector._labelnames) for collector in collectors}
    named = set(re.findall(r"\bdecision_pipeline_\w+", README))
    short = set(re.findall(r"`([a-z]+_[a-z_]+)(?:\{[^`]*\})?`", section("Troubleshooting"))) - {"fs_user_id"}
    named |= {
        f"decision_pipeline_{name}" for name in short if name.startswith(("segment_", "upstream_", "partitions_"))
    }
    assert [name for name in sorted(named) if name.removesuffix("_total") not in labels] == []
    for by, name in re.findall(r"by \(([\w, ]+)\) \((?:\w+\()?(decision_pipeline_\w+)", README):
        assert set(by.split(", ")) <= labels[name.removesuffix("_total")], name


def test_the_tables_are_current() -> None:
    assert current(README) == README


def rows(title: str, head: str) -> list[list[str]]:
    """The rows below a table's head in a section, as their cells."""
    _, found, rest = section(title).partition(f"| {head}")
    assert found, f"{title} has no table {head!r}"
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_reason_for_a_dead_letter_is_explained_with_the_topics_it_is_for() -> None:
    short = dict(zip(("requests", "results", "track", "odp"), TOPICS, strict=True))
    explained: dict[str, set[str]] = {}
    for cell, origin, _ in rows("dead.letters", "Reason"):
        for reason in code_spans(cell):
            assert reason not in explained
            explained[reason] = set(TOPICS) if origin == "all" else {short[one] for one in origin.split(", ")}
    assert explained == reasons()


def test_the_errors_of_results_are_the_worker_s() -> None:
    explained = re.findall(r"^\| `([^`]+)` \|", section("decide.results").split("`error` is one of:")[1], re.MULTILINE)
    constants = {
        decide_messages.PARSING_FAILED, decide_messages.SDK_KEY_MALFORMED, words.EXPIRED,
        words.FETCH_FAILED, words.SDK_KEY_MISSING,
    }  # fmt: skip
    assert constants <= set(explained)
    source = "".join(path.read_text("utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    texts = [re.sub(r"(: )[XK]$", r"\1", text) for text in explained]
    assert [text for text in texts if text not in source] == []


@pytest.mark.parametrize("topic", ["decide.requests", "decide.results", "track.events", "odp.events"])
def test_every_property_of_a_topic_is_explained(topic: str) -> None:
    name = topic.replace(".", "-").removesuffix("s")
    document = json.loads((schemas_directory() / f"{name}.schema.json").read_bytes())
    # In a table a property has a row; being mentioned in another one's is not enough.
    first_cells = "\n".join(re.findall(r"^\| ([^|]+) \|", section(topic), re.MULTILINE))
    explained = set(code_spans(first_cells or section(topic)))
    assert set(document["properties"]) - explained == set()


def test_every_field_of_a_decision_is_explained() -> None:
    fields = DECIDE_RESULT.schema["properties"]["decisions"]["items"]["properties"]
    explained = [field for first, *_ in rows("decide.results", "Field of a decision") for field in code_spans(first)]
    assert sorted(explained) == sorted(fields)


def test_what_may_be_null_in_a_result_is_told() -> None:
    told = {
        name for first, kind, _ in rows("decide.results", "Property") if "null" in kind for name in code_spans(first)
    }
    properties = DECIDE_RESULT.schema["properties"]
    assert told == {name for name, schema in properties.items() if "null" in schema["type"]}
    decision = properties["decisions"]["items"]["properties"]
    assert "none is ever null" in " ".join(section("decide.results").split())
    assert [name for name, schema in decision.items() if "null" in schema["type"]] == []


def test_the_exit_codes_are_those_of_the_command() -> None:
    codes = [int(code) for code, _ in rows("Health, readiness, logs, exit codes", "Exit code")]
    assert codes == [0, 1, 2, EXIT_GAVE_UP, 128 + signal.SIGINT, 128 + signal.SIGTERM]
    assert {int(code) for code in re.findall(r"[Ee]xit codes? (\d+)", README)} <= set(codes)


def test_the_time_that_kubernetes_gives_a_pod_is_the_manifest_s() -> None:
    (worker,) = yaml.safe_load_all((ROOT / "k8s/base/worker.yaml").read_text("utf-8"))
    wanted = re.findall(r"terminationGracePeriodSeconds: (\d+)", README)
    assert wanted == [str(worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])]
    assert int(wanted[0]) > Settings().ops.drain + 10


def test_a_default_in_prose_is_the_setting_s() -> None:
    shown = re.findall(r"`PIPELINE_([A-Z]+)__([A-Z_]+)` \(([\d.,]+) s\)", README)
    assert len(shown) > 1
    defaults = Settings().model_dump()
    assert [name for name in shown if defaults[name[0].lower()][name[1].lower()] != float(name[2])] == []


def numbers() -> dict[str, str]:
    """Sentences with a number of the code's: a part of each, and the section it stands in."""
    defaults = Settings()
    fence = f"{defaults.kafka.session_timeout - defaults.kafka.heartbeat_interval:g} s"
    return {
        f"with {defaults.topics.partitions} partitions each": "A worker of your own",
        f"the default is {defaults.topics.replication_factor}": "A worker of your own",
        f"on {defaults.ops.host}:{defaults.ops.port}": "A worker of your own",
        f"suspended or starved for {fence}": "Troubleshooting",
        f"one session timeout ({defaults.kafka.session_timeout:g} s)": "On Kubernetes",
        f"deeper than {MAX_NESTING} levels": "dead.letters",
        f"at most {'half a minute' if Backoff().cap == 30 else Backoff().cap} for a service": (
            "What is promised, and how it is proven"
        ),
    }


@pytest.mark.parametrize(("text", "title"), list(numbers().items()))
def test_a_number_in_prose_is_the_code_s(text: str, title: str) -> None:
    assert text in " ".join(section(title).split())


def test_a_number_in_an_alert_is_the_code_s() -> None:
    kafka = Settings().kafka
    told = re.findall(r"session_timeout less one heartbeat \((\d+) s\)", " ".join(RULES.read_text("utf-8").split()))
    assert told == [f"{kafka.session_timeout - kafka.heartbeat_interval:g}"]


def test_the_rights_at_the_broker_are_those_that_the_roles_need() -> None:
    topics = Settings().topics
    table = {
        name.strip("`"): (code_spans(read), code_spans(write), code_spans(group))
        for name, read, write, group in rights()
    }
    assert table == {
        role: (
            [*topics_of(role, topics), *([topics.decide_results] if role == "decide" else [])],
            [*([topics.decide_results] if role == "decide" else []), topics.dead_letters],
            [f"{Settings().kafka.group_id}.{role}"],
        )
        for role in ROLES
    }


def rights() -> list[list[str]]:
    return rows("Rights at the broker", "Role")


def test_the_example_of_deciding_offline_gives_the_result_shown(tmp_path: Path) -> None:
    (script,) = blocks("sh", "Deciding offline")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-eu"], input=script, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    (shown,) = (json.loads(block) for block in blocks("json", "Deciding offline"))
    result = json.loads(done.stdout)
    assert DECIDE_RESULT.is_valid(shown)
    assert list(result) == list(shown)
    assert result | {"timestamp": 0} == shown | {"timestamp": 0}


def requests_shown() -> Iterator[dict[str, Any]]:
    """The requests in the examples of the first request: shell, Python, Java."""
    title = "Your first request"
    for block in blocks("sh", title):
        yield from (json.loads(found) for found in re.findall(r"\{\"userId\".*\}(?=\\n)", block))
    (program,) = blocks("python", title)
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "request":
            assert isinstance(node.value, ast.Dict)
            yield {
                ast.literal_eval(key): "some-id" if isinstance(value, ast.Call) else ast.literal_eval(value)
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if key is not None
            }
    (java,) = blocks("java", title)
    yield from (json.loads(found) for found in re.findall(r'"""\n *(\{.*\})"""', java))


def test_the_requests_shown_are_decided_by_the_demo_s_project() -> None:
    project = compile_datafile(datafiles("https://odp.example")[PRODUCTION])
    shown = list(requests_shown())
    assert len(shown) == 3
    for document in shown:
        request = parse_decide_request(json.dumps(document).encode(), max_bytes=1024)
        assert request.error is None
        assert set(document) <= set(DECIDE_REQUEST.schema["properties"])
        assert document["sdkKey"] == PRODUCTION
        assert [key for key in request.keys if key not in project.flags] == []


def test_the_request_shown_for_a_worker_of_one_s_own_is_decided_by_the_datafile_shown() -> None:
    (script,) = blocks("sh", "Deciding offline")
    project = compile_datafile(script.split("<<'EOF'\n")[1].split("\nEOF\n")[0].encode())
    (shown,) = re.findall(r"\{\"userId\".*\}(?=\\n)", "".join(blocks("sh", "A worker of your own")))
    request = parse_decide_request(shown.encode(), max_bytes=1024)
    assert request.error is None
    assert set(json.loads(shown)) <= set(DECIDE_REQUEST.schema["properties"])
    assert [key for key in request.keys if key not in project.flags] == []


def test_the_settings_shown_are_accepted(tmp_path: Path) -> None:
    exports = dict(re.findall(r"^export (PIPELINE_\w+)=(\S+)", blocks("sh", "A worker of your own")[1], re.MULTILINE))
    assert load_settings(exports).optimizely.sdk_keys == ("shopExample01",)
    (document,) = blocks("yaml", "Operations")
    file = tmp_path / "settings.yaml"
    file.write_text(document, "utf-8")
    settings = load_settings({}, file)
    assert settings.roles == tuple(yaml.safe_load(document)["roles"])
