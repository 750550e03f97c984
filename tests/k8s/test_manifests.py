"""The manifests as kustomize builds them: valid, safe, consistent with one another and with the worker."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from pipeline.api.operations import Operations
from pipeline.outage import Outage
from pipeline.settings import ROLES, OpsSettings, Settings, load_settings
from pipeline.settings.names import SETTINGS, is_password, variable
from tests.k8s.manifests import (
    BASE,
    GUIDE,
    K8S,
    SECRETS,
    SELECTED,
    WORKLOADS,
    Document,
    built_overlay,
    container_of,
    each_role,
    environment_of,
    labels_of,
    matches,
    of_kind,
    pod_of,
    the,
)
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
CAFILE = "PIPELINE_KAFKA__SSL_CAFILE"


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("document", BASE, ids=lambda one: f"{one['kind']}/{one['metadata']['name']}")
def test_a_manifest_is_valid(document: Document, version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_every_file_is_used() -> None:
    for name in ("base", "kafka-ca", "profiles", "topics", "monitoring", "rules", "dashboards"):
        kustomization = yaml.safe_load((K8S / name / "kustomization.yaml").read_text("utf-8"))
        generated = kustomization.get("configMapGenerator", [])
        used = {
            "kustomization.yaml",
            *(path for path in kustomization.get("resources", []) if not path.startswith("..")),
            *(patch["path"] for patch in kustomization.get("patches", [])),
            *(path for one in generated for path in [*one.get("envs", []), *one.get("files", [])]),
        }
        there = {path.name for path in (K8S / name).iterdir()}
        assert there - used == (
            {"decision-pipeline.rules.yml", "decision-pipeline.test.yml"} if name == "rules" else set()
        )


def test_each_role_has_its_own_workload() -> None:
    assert sorted(environment_of(one)["PIPELINE_ROLES"] for one in WORKLOADS) == sorted(ROLES)


@each_role()
def test_its_settings_are_accepted(workload: Document) -> None:
    settings = load_settings(environment_of(workload))
    assert settings.roles == (labels_of(workload)["app.kubernetes.io/component"].replace("-", "_"),)
    assert settings.ops.host == "0.0.0.0"
    assert settings.optimizely.sdk_keys == ("key1", "key2")


@each_role()
def test_membership_is_static_under_the_pods_name(workload: Document) -> None:
    (instance,) = [one for one in container_of(workload)["env"] if one["name"] == "PIPELINE_KAFKA__GROUP_INSTANCE_ID"]
    assert instance["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert workload["spec"]["podManagementPolicy"] == "Parallel"
    assert workload["spec"]["replicas"] == 2
    # One pod after the other, and not on before it was ready for a while.
    assert "updateStrategy" not in workload["spec"]
    assert workload["spec"]["minReadySeconds"] == 10
    assert workload["spec"]["serviceName"] == the("Service")["metadata"]["name"]
    assert the("Service")["spec"]["clusterIP"] == "None"


@each_role()
def test_nothing_adds_settings_behind_its_back(workload: Document) -> None:
    # A Service named `pipeline` would otherwise put PIPELINE_SERVICE_HOST into the environment: exit code 2.
    assert pod_of(workload)["enableServiceLinks"] is False


def test_no_secret_is_in_the_repository() -> None:
    assert of_kind("Secret") == []
    secrets = {variable(setting) for setting in SETTINGS if is_password(setting)}
    assert secrets
    set_here = {*the("ConfigMap")["data"], *(one["name"] for role in WORKLOADS for one in container_of(role)["env"])}
    assert set_here & {*SECRETS["decision-pipeline"], *secrets} == set()


class _Waiting:
    """A worker whose start waits for the CDN."""

    def stuck(self) -> list[str]:
        return []

    def awaited(self) -> list[str]:
        return ["waiting for the datafiles"]

    def outages(self) -> list[Outage]:
        return []

    def status(self) -> Mapping[str, Any]:
        return {}


@pytest.mark.asyncio
async def test_while_the_cdn_is_away_a_pod_waits_unready_and_is_not_restarted() -> None:
    operations = Operations(_Waiting(), CollectorRegistry(), OpsSettings(port=0))
    await operations.start()
    try:
        async with aiohttp.ClientSession() as session:
            for workload in WORKLOADS:
                container = container_of(workload)
                for probe, passes in (("startupProbe", True), ("livenessProbe", True), ("readinessProbe", False)):
                    request = container[probe]["httpGet"]
                    assert request["port"] == "ops"
                    async with session.get(f"http://127.0.0.1:{operations.port}{request['path']}") as answer:
                        assert answer.status == (200 if passes else 503), probe
    finally:
        await operations.close()


@each_role()
def test_a_process_has_a_minute_to_begin_and_is_taken_for_ready_only_while_it_is(workload: Document) -> None:
    startup, readiness = container_of(workload)["startupProbe"], container_of(workload)["readinessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 60
    assert readiness["periodSeconds"] * readiness["failureThreshold"] == 10


@each_role()
def test_liveness_is_slower_than_the_worker_s_own_fence(workload: Document) -> None:
    kafka = load_settings(environment_of(workload)).kafka
    probe = container_of(workload)["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > kafka.session_timeout - kafka.heartbeat_interval


@each_role()
def test_a_stop_is_given_more_time_than_it_may_take(workload: Document) -> None:
    settings = load_settings(environment_of(workload))
    assert pod_of(workload)["terminationGracePeriodSeconds"] >= settings.ops.drain + 10


@each_role()
def test_the_ops_port_is_the_worker_s(workload: Document) -> None:
    port = load_settings(environment_of(workload)).ops.port
    assert container_of(workload)["ports"] == [{"name": "ops", "containerPort": port}]
    assert the("Service")["spec"]["ports"] == [{"name": "ops", "port": port, "targetPort": "ops"}]
    (rule,) = the("NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "ops"}]


@each_role()
def test_a_pod_may_do_nothing_that_it_does_not_need(workload: Document) -> None:
    pod, container = pod_of(workload), container_of(workload)
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == the("ServiceAccount")["metadata"]["name"]
    assert the("ServiceAccount")["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"} & pod.keys()
    user = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001}
    assert pod["securityContext"] == {**user, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@each_role()
def test_memory_is_bounded_and_cpu_is_not_throttled(workload: Document) -> None:
    resources = container_of(workload)["resources"]
    assert resources["requests"] == {"cpu": "1", "memory": "256Mi"}
    assert resources["limits"] == {"memory": "1Gi"}


@each_role()
def test_selectors_find_the_pods_of_one_role(workload: Document) -> None:
    selector = workload["spec"]["selector"]["matchLabels"]
    name = workload["metadata"]["name"]
    assert [one["metadata"]["name"] for one in WORKLOADS if matches(selector, labels_of(one))] == [name]
    budgets = [
        one for one in of_kind("PodDisruptionBudget")
        if matches(one["spec"]["selector"]["matchLabels"], labels_of(workload))
    ]  # fmt: skip
    assert [one["metadata"]["name"] for one in budgets] == [name]
    assert budgets[0]["spec"]["maxUnavailable"] == 1
    assert budgets[0]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for constraint in pod_of(workload)["topologySpreadConstraints"]:
        assert matches(constraint["labelSelector"]["matchLabels"], labels_of(workload))
        assert constraint["matchLabelKeys"] == ["app.kubernetes.io/component"]
        assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


def test_what_is_for_all_roles_finds_the_pods_of_all_roles() -> None:
    for selector in (the("Service")["spec"]["selector"], the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]):
        assert selector == SELECTED
        assert all(matches(selector, labels_of(one)) for one in WORKLOADS)


def test_the_version_is_the_project_s() -> None:
    job = yaml.safe_load((K8S / "topics" / "job.yaml").read_text("utf-8"))
    assert {container_of(one)["image"] for one in [*WORKLOADS, job]} == {f"decision-pipeline:{VERSION}"}
    assert {one["metadata"]["labels"]["app.kubernetes.io/version"] for one in BASE} == {VERSION}
    assert set(re.findall(r"decision-pipeline:([\d.]+\d)", GUIDE)) == {VERSION}


def test_only_prometheus_comes_in_and_private_networks_stay_out_of_reach() -> None:
    policy = the("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [list(peer) for rule in policy["ingress"] for peer in rule["from"]] == [["namespaceSelector"]]
    (web,) = [rule for rule in policy["egress"] if rule["ports"] == [{"protocol": "TCP", "port": 443}]]
    blocked = {network for peer in web["to"] for network in peer["ipBlock"]["except"]}
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"} <= blocked
    assert all(rule["to"] for rule in policy["egress"])


def test_dns_and_kafka_can_be_reached() -> None:
    dns, kafka, _ = the("NetworkPolicy")["spec"]["egress"]
    assert dns["to"] == [{"namespaceSelector": {}}, {"ipBlock": {"cidr": "169.254.20.10/32"}}]
    assert dns["ports"] == [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    assert kafka["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kafka"}}}]
    assert kafka["ports"] == [{"protocol": "TCP", "port": port} for port in (9092, 9093)]


@pytest.mark.parametrize("port", [9092, 9093])
def test_the_brokers_named_are_where_the_network_policy_lets_through(port: int, overlay: list[Document]) -> None:
    documents = BASE if port == 9092 else overlay
    (config,) = [one for one in of_kind("ConfigMap", documents) if "dashboard" not in one["metadata"]["name"]]
    assert config["data"]["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"] == f"kafka-bootstrap.kafka.svc:{port}"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """What the overlay of k8s/README.md builds."""
    return built_overlay(tmp_path_factory.mktemp("manifests"))


def test_the_overlay_shown_is_a_whole_installation(overlay: list[Document]) -> None:
    workloads = {one["metadata"]["name"]: one for one in of_kind("StatefulSet", overlay)}
    assert workloads["decision-pipeline-decide"]["spec"]["replicas"] == 8
    assert {one["metadata"]["namespace"] for one in overlay} == {"decisions"}
    settings_of_all = [
        load_settings(environment_of(one, overlay)) for one in [*workloads.values(), the("Job", overlay)]
    ]
    assert {one.kafka.security_protocol for one in settings_of_all} == {"SASL_SSL"}
    assert {one.optimizely.sdk_keys for one in settings_of_all} == {("key1", "key2")}
    # Merged with those of the base, not instead of them.
    assert "PIPELINE_OPS__LOG_LEVEL" in next(one for one in of_kind("ConfigMap", overlay))["data"]


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_what_it_adds_is_valid(overlay: list[Document], version: str) -> None:
    known = [one for one in overlay if not one["apiVersion"].startswith("monitoring.coreos.com/")]
    assert {one["kind"] for one in overlay} - {one["kind"] for one in known} == {"PodMonitor", "PrometheusRule"}
    for document in known:
        kubernetes_validate.validate(document, version, strict=True)


def test_a_private_authority_s_certificate_is_where_the_setting_points(overlay: list[Document]) -> None:
    command = re.search(r"^kubectl -n decisions create configmap (\S+) --from-file=(\S+)$", GUIDE, re.MULTILINE)
    assert command is not None
    for workload in [*of_kind("StatefulSet", overlay), the("Job", overlay)]:
        (volume,) = pod_of(workload)["volumes"]
        assert volume["configMap"] == {"name": command[1]}
        (mount,) = container_of(workload)["volumeMounts"]
        assert mount == {"name": volume["name"], "mountPath": mount["mountPath"], "readOnly": True}
        (path,) = [one["value"] for one in container_of(workload)["env"] if one["name"] == CAFILE]
        assert path == f"{mount['mountPath']}/{command[2]}"


def test_the_job_that_makes_the_topics_is_no_worker(overlay: list[Document]) -> None:
    job = the("Job", overlay)
    pod, container = pod_of(job), container_of(job)
    assert container["args"] == ["topics", "create"]
    assert container["image"] == container_of(of_kind("StatefulSet", overlay)[0])["image"]
    assert job["spec"]["ttlSecondsAfterFinished"] == 600
    assert matches(SELECTED, labels_of(job)), "else the way to Kafka is another one"
    assert not any(matches(one["spec"]["selector"]["matchLabels"], labels_of(job)) for one in WORKLOADS)
    worker = WORKLOADS[0]
    same = ("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext")
    assert {name: pod[name] for name in same} == {name: pod_of(worker)[name] for name in same}
    assert container["securityContext"] == container_of(worker)["securityContext"]


def test_the_links_of_alerts_can_be_made(tmp_path: Path) -> None:
    (command,) = re.findall(r"`(sed -i [^`]+)`", GUIDE)
    rules = tmp_path / "k8s" / "rules"
    shutil.copytree(K8S / "rules", rules)
    files = ("decision-pipeline.rules.yml", "decision-pipeline.test.yml", "prometheusrule.yaml")
    # As they are here, also in a copy where it was done already.
    before = [re.sub(r"(runbook_url: )\S*README", r"\1README", (rules / name).read_text("utf-8")) for name in files]
    for name, text in zip(files, before, strict=True):
        (rules / name).write_text(text, "utf-8")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=PATIENCE)
    link = "runbook_url: https://git.example.com/decision-pipeline/README"
    after = [text.replace("runbook_url: README", link) for text in before]
    assert [(rules / name).read_text("utf-8") for name in files] == after != before


def test_the_pod_monitor_scrapes_the_pods_of_all_roles(overlay: list[Document]) -> None:
    # Its schema is not among Kubernetes' own, so its fields are named here.
    monitor = the("PodMonitor", overlay)
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"jobLabel", "selector", "podMetricsEndpoints"}
    assert monitor["spec"]["selector"] == {"matchLabels": SELECTED}
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "ops", "path": "/metrics", "interval": "15s"}]
    # What the alert on `up` asks for.
    assert {labels_of(one)[monitor["spec"]["jobLabel"]] for one in WORKLOADS} == {"decision-pipeline"}


def test_the_alerts_and_the_dashboard_come_with_it(overlay: list[Document]) -> None:
    assert len(the("PrometheusRule", overlay)["spec"]["groups"]) == 1
    (dashboard,) = [one for one in of_kind("ConfigMap", overlay) if "dashboard" in one["metadata"]["name"]]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert list(dashboard["data"]) == ["decision-pipeline.json"]


def comments() -> Iterator[tuple[str, str]]:
    for path in sorted(K8S.rglob("*.yaml")):
        yield path.name, path.read_text("utf-8")


def test_every_setting_named_in_comments_is_there() -> None:
    known = {
        f"PIPELINE_{section}__{name}".upper()
        for section, model in Settings.model_fields.items()
        for name in getattr(model.annotation, "model_fields", {})
    } | {"PIPELINE_ROLES", "PIPELINE_SERVICE_HOST"}
    texts = [*comments(), ("README.md", GUIDE)]
    unknown = {
        (name, setting)
        for name, text in texts
        for setting in re.findall(r"\bPIPELINE_[A-Z_]+[A-Z]", text)
        if setting not in known
    }
    assert unknown == set()
