"""The settings in effect as `pipeline check-config` shows them: where each comes from, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.settings import effective_settings, load
from pipeline.settings.effective import Effective
from pipeline.settings.names import SETTINGS, variable


def shown(environ: dict[str, str], file: Path | None = None) -> dict[str, Effective]:
    return {one.setting: one for one in effective_settings(load(environ, file))}


def test_every_setting_is_shown_once_with_its_default_where_nothing_is_set() -> None:
    found = shown({})
    assert list(found) == list(SETTINGS)
    assert {(one.place, one.changed) for one in found.values()} == {("default", False)}
    assert all(one.value == one.default for one in found.values())


def test_the_place_that_a_value_comes_from_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("kafka:\n  group_id: mine\n  client_id: mine\n")
    found = shown({"PIPELINE_KAFKA__CLIENT_ID": "other", "PIPELINE_OPS__PORT": "8088"}, file)
    places = {name: (one.place, one.changed) for name, one in found.items() if one.place != "default"}
    assert places == {
        "kafka.group_id": (f"{file}:2", True), "kafka.client_id": ("environment", True),
        # Set, to what it would be anyway.
        "ops.port": ("environment", False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "given", "text"),
    [
        ("kafka.held_bytes", "64Mi", "64MiB"),
        ("kafka.held_bytes", "1000", "1000"),
        ("kafka.session_timeout", "1m", "60"),
        ("kafka.handover_timeout", "1500ms", "1.5"),
        ("topics.retention", "30d", "2592000"),
        ("odp.allow_http", "yes", "true"),
        ("odp.allowed_hosts", '["a","*.b"]', "a,*.b"),
        ("odp.allowed_hosts", "", "-"),
        ("profiles.key_prefix", "", '""'),
        ("kafka.group_instance_id", "pod-0", "pod-0"),
    ],
)
def test_a_value_is_shown_in_a_form_that_can_be_set(setting: str, given: str, text: str) -> None:
    assert shown({variable(setting): given})[setting].text == text


def test_no_form_of_it_holds_a_secret() -> None:
    secret = "correcthorsebattery1"
    found = shown(
        {
            "PIPELINE_KAFKA__SASL_PASSWORD": secret, "PIPELINE_OPTIMIZELY__SDK_KEYS": secret,
            "PIPELINE_PROFILES__REDIS_URL": f"redis://:{secret}@host:6379/0",
            "PIPELINE_LOGX__URL": f"https://me:{secret}@host/v1/events",
        }
    )  # fmt: skip
    texts = {name: found[name].text for name in ("optimizely.sdk_keys", "profiles.redis_url", "logx.url")}
    assert texts == {
        "optimizely.sdk_keys": "9322…ery1", "profiles.redis_url": "***", "logx.url": "https://***@host/v1/events",
    }  # fmt: skip
    assert secret not in repr(list(found.values())) + json.dumps([one.document() for one in found.values()])
