"""The manifests as kustomize builds them, and what a process of theirs finds in its environment.

The Secrets are no part of them: their contents are those that k8s/README.md shows.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import PATIENCE

K8S = Path(__file__).parents[2] / "k8s"
GUIDE = (K8S / "README.md").read_text("utf-8")
SELECTED = {"app.kubernetes.io/name": "decision-pipeline", "app.kubernetes.io/instance": "decision-pipeline"}

Document = dict[str, Any]


def _secrets() -> dict[str, dict[str, str]]:
    """Name of a Secret -> its keys and values: the files shown, in the order of the commands that take them."""
    names = re.findall(r"^kubectl \S+ \S+ create secret generic (\S+) --from-env-file=\S+$", GUIDE, re.MULTILINE)
    files = re.findall(r"^```sh\n(PIPELINE_.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    contents = [dict(line.split("=", 1) for line in file.splitlines()) for file in files]
    return dict(zip(names, contents, strict=True))


SECRETS = _secrets()


def built(directory: Path) -> list[Document]:
    """What `kubectl kustomize` makes of a directory. kubectl comes with the packages of the tests."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [str(kubectl), "kustomize", str(directory)], capture_output=True, text=True, timeout=PATIENCE, env={"HOME": "/"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


BASE = built(K8S / "base")


def built_overlay(directory: Path, *components: str) -> list[Document]:
    """What the overlay of k8s/README.md builds in an empty directory, with these components besides its own."""
    shutil.copytree(K8S, directory / "k8s")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    kustomization = yaml.safe_load(text)
    kustomization["components"] += [f"../{name}" for name in components]
    (directory / "k8s" / "production").mkdir()
    (directory / "k8s" / "production" / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), "utf-8")
    return built(directory / "k8s" / "production")


def of_kind(kind: str, documents: list[Document] = BASE) -> list[Document]:
    return [one for one in documents if one["kind"] == kind]


def the(kind: str, documents: list[Document] = BASE) -> Document:
    (one,) = of_kind(kind, documents)
    return one


WORKLOADS = of_kind("StatefulSet")


def each_role() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("workload", WORKLOADS, ids=[one["metadata"]["name"] for one in WORKLOADS])


def pod_of(workload: Document) -> Document:
    pod: Document = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Document) -> Document:
    (container,) = pod_of(workload)["containers"]
    return dict(container)


def labels_of(workload: Document) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def environment_of(workload: Document, documents: list[Document] = BASE) -> dict[str, str]:
    """What the process finds in its environment, with the Secrets that k8s/README.md asks for."""
    container = container_of(workload)
    config = the("ConfigMap", [one for one in documents if "dashboard" not in one["metadata"]["name"]])
    from_config, from_secret = container["envFrom"]
    assert config["data"]["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"]
    assert from_config == {"configMapRef": {"name": config["metadata"]["name"]}}
    assert from_secret == {"secretRef": {"name": "decision-pipeline"}}
    own = {one["name"]: _value(one, workload["metadata"]["name"] + "-0") for one in container.get("env", [])}
    return {**config["data"], **SECRETS["decision-pipeline"], **own}


def _value(variable: Document, pod: str) -> str:
    if "value" in variable:
        return str(variable["value"])
    source = variable["valueFrom"]
    if "secretKeyRef" in source:
        return SECRETS[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
    assert source == {"fieldRef": {"fieldPath": "metadata.name"}}
    return pod


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()
