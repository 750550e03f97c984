"""The component `profiles`: role decide gets the address of a Redis and a way to it, and nobody else does."""

from __future__ import annotations

from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from pipeline.settings import load_settings
from tests.k8s.manifests import (
    BASE,
    GUIDE,
    SECRETS,
    WORKLOADS,
    Document,
    built_overlay,
    container_of,
    environment_of,
    labels_of,
    matches,
    of_kind,
    the,
)

SECRET = "decision-pipeline-profiles"
URL = "PIPELINE_PROFILES__REDIS_URL"
ROLE = "app.kubernetes.io/component"


@pytest.fixture(scope="module")
def sticky(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The overlay of k8s/README.md with the component."""
    return built_overlay(tmp_path_factory.mktemp("manifests"), "profiles")


def redis_url_of(workload: Document, documents: list[Document]) -> str | None:
    url = load_settings(environment_of(workload, documents)).profiles.redis_url
    return url.get_secret_value() if url else None


def policy_of(documents: list[Document]) -> Document:
    (policy,) = [one for one in of_kind("NetworkPolicy", documents) if one["metadata"]["name"] == SECRET]
    return policy


def test_decisions_are_not_sticky_unless_it_is_taken_in() -> None:
    assert [redis_url_of(one, BASE) for one in WORKLOADS] == [None] * len(WORKLOADS)
    assert SECRET not in str(BASE)


def test_role_decide_alone_gets_the_address(sticky: list[Document]) -> None:
    pods = [*of_kind("StatefulSet", sticky), the("Job", sticky)]
    addresses = {labels_of(one)[ROLE]: redis_url_of(one, sticky) for one in pods}
    assert len(addresses) == len(pods) == 4
    assert addresses.pop("decide") == SECRETS[SECRET][URL]
    assert set(addresses.values()) == {None}


def test_the_rest_of_its_environment_stays(sticky: list[Document], tmp_path_factory: pytest.TempPathFactory) -> None:
    without = built_overlay(tmp_path_factory.mktemp("manifests"))
    (decide,) = [one for one in of_kind("StatefulSet", sticky) if labels_of(one)[ROLE] == "decide"]
    environment = environment_of(decide, sticky)
    del environment[URL]
    (before,) = [one for one in of_kind("StatefulSet", without) if labels_of(one)[ROLE] == "decide"]
    assert environment == environment_of(before, without)


def test_no_pod_starts_without_the_secret(sticky: list[Document]) -> None:
    # It would decide without profiles, and nothing would show it.
    (decide,) = [one for one in of_kind("StatefulSet", sticky) if labels_of(one)[ROLE] == "decide"]
    (source,) = [one["valueFrom"] for one in container_of(decide)["env"] if one["name"] == URL]
    assert source == {"secretKeyRef": {"name": SECRET, "key": URL}}
    assert of_kind("Secret", sticky) == []
    assert "rediss://" not in yaml.safe_dump_all(sticky)


def test_the_way_to_redis_is_role_decide_s_and_leads_to_the_address_shown(sticky: list[Document]) -> None:
    policy = policy_of(sticky)["spec"]
    selector = policy["podSelector"]["matchLabels"]
    pods = [*of_kind("StatefulSet", sticky), the("Job", sticky)]
    assert [labels_of(one)[ROLE] for one in pods if matches(selector, labels_of(one))] == ["decide"]
    assert policy["policyTypes"] == ["Egress"], "what comes in is the other policy's"
    address = urlsplit(SECRETS[SECRET][URL])
    (rule,) = policy["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": address.port}]
    assert address.hostname is not None
    namespace = address.hostname.removesuffix(".svc").rpartition(".")[2]
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_what_it_changes_is_valid(sticky: list[Document], version: str) -> None:
    for document in [policy_of(sticky), *of_kind("StatefulSet", sticky)]:
        kubernetes_validate.validate(document, version, strict=True)
        assert document["metadata"]["namespace"] == "decisions"


def test_the_guide_names_its_parts() -> None:
    assert f"`{SECRET}` from a\nfile `profiles.env`" in GUIDE
    assert "`../profiles`" in GUIDE
