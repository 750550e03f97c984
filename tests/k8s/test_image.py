"""The Dockerfile, as far as it can be known without building it: what it copies is there, what it needs is locked."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.settings import OpsSettings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "k8s" / "Dockerfile").read_text("utf-8"))
STAGES = re.split(r"^FROM .*\n", TEXT, flags=re.MULTILINE)[1:]


def instructions(name: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)


def needed(names: list[str]) -> set[str]:
    """Packages that these need to run, with those they need in turn."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.add(name)
        for text in distribution(name).requires or ():
            inner = Requirement(text)
            extras = requirement.extras or {""}
            wanted = inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras)
            if wanted and canonicalize_name(inner.name) not in found:
                waiting.append(inner)
    return found


def test_two_stages_of_one_base() -> None:
    assert instructions("FROM") == ["${PYTHON} AS build", "${PYTHON}"]
    assert instructions("ARG", TEXT.split("FROM")[0]) == ["PYTHON=python:3.13-slim-bookworm"]


def test_what_is_copied_is_there_and_reaches_the_build() -> None:
    build, _ = STAGES
    sources = [source for line in instructions("COPY", build) for source in line.split()[:-1]]
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignore[1] == "*", "whatever is not named must stay out"
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert set(sources) == allowed
    assert [source for source in sources if not (ROOT / source).exists()] == []
    # hatchling reads these to make the wheel.
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "pipeline", "schemas"} <= set(sources)


def test_packages_come_from_the_lock_by_hash_before_the_code() -> None:
    build, _ = STAGES
    locked, own = [line for line in instructions("RUN", build) if "install" in line]
    assert "--require-hashes -r requirements.lock" in locked
    assert "--no-index --no-deps --no-build-isolation ." in own
    assert build.index(locked) < build.index("COPY pipeline")
    # Nothing is compiled, whatever a mirror offers.
    assert "PIP_ONLY_BINARY=:all:" in instructions("ENV", build)[0].split()


def test_what_is_taken_out_again_is_not_needed() -> None:
    (names,) = re.findall(r"uninstall --yes ([\w -]+?) &&", TEXT)
    runtime = needed(PROJECT["dependencies"])
    assert "aiohttp" in runtime
    assert set(names.split()) & runtime == set()
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    installed = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    assert installed >= set(names.split())
    # Nothing else that only building needs stays behind.
    assert needed(["hatchling", "editables"]) & installed - runtime == set(names.split())


def test_the_final_stage_runs_the_worker_as_nobody_in_particular() -> None:
    _, final = STAGES
    assert instructions("RUN", final) == []
    # Scripts hold the path of the environment they were installed into, so it must not move.
    (home,) = re.findall(r"^RUN python -m venv --without-pip (\S+)$", TEXT, re.MULTILINE)
    assert instructions("COPY", final) == [f"--from=build {home} {home}"]
    assert f"PATH={home}/bin:$PATH" in instructions("ENV", final)[0].split()
    assert instructions("USER", final) == ["10001:10001"]
    assert instructions("ENTRYPOINT", final) == ['["pipeline"]']
    assert instructions("CMD", final) == ['["run"]']
    assert instructions("EXPOSE", final) == [str(OpsSettings().port)]
    assert "PIPELINE_OPS__HOST=0.0.0.0" in instructions("ENV", final)[0]
    assert f'org.opencontainers.image.version="{PROJECT["version"]}"' in final
