"""Settings: how values are written, what goes before what, and that every mistake is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import CONFIG_FILE, ROLES, Settings, load_settings, masked


def mistakes(environ: dict[str, str], file: Path | None = None) -> dict[str, str]:
    """What a start would say: name of the setting -> the sentence."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ, file)
    return dict(one.split(": ", 1) for one in caught.value.mistakes)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    return file


# How values are written


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('["key1","key2"]', ("key1", "key2")),
        (' [ "key1" ] ', ("key1",)),
        ("[]", ()),
        ("", ()),
        ("key1", ("key1",)),
        ("a+b/c=_-", ("a+b/c=_-",)),
    ],
)
def test_a_list_is_json_and_a_bare_word_a_list_of_one(text: str, keys: tuple[str, ...]) -> None:
    assert load_settings({"PIPELINE_OPTIMIZELY__SDK_KEYS": text}).optimizely.sdk_keys == keys


@pytest.mark.parametrize("text", ["[key1,key2]", '["key1"', "[1]", "key1,key2", "a key", '["key1","key1"]', "x" * 129])
def test_a_list_that_is_no_json_or_holds_no_sdk_keys_is_a_mistake(text: str) -> None:
    told = " ".join(mistakes({"PIPELINE_OPTIMIZELY__SDK_KEYS": text}))
    assert "PIPELINE_OPTIMIZELY" in told


def test_a_list_that_is_no_json_is_told_how_to_write_one() -> None:
    told = mistakes({"PIPELINE_OPTIMIZELY__SDK_KEYS": "[key1]"})
    assert told == {
        "PIPELINE_OPTIMIZELY__SDK_KEYS": 'not a JSON list; write ["one","two"], or a bare word for a list of one'
    }


def test_roles_are_a_list_of_known_names_and_not_empty() -> None:
    assert load_settings({"PIPELINE_ROLES": "logx"}).roles == ("logx",)
    assert load_settings({"PIPELINE_ROLES": '["decide","odp_events"]'}).roles == ("decide", "odp_events")
    assert load_settings({}).roles == ROLES
    assert mistakes({"PIPELINE_ROLES": "contact"})
    assert mistakes({"PIPELINE_ROLES": "[]"})


@pytest.mark.parametrize(
    ("text", "octets"), [("64MiB", 64 * 1024**2), ("1024", 1024), ("1.5 KiB", 1536), ("2MB", 2_000_000), ("1kb", 1000)]
)
def test_a_size_is_bytes_or_text_with_a_unit(text: str, octets: int) -> None:
    assert load_settings({"PIPELINE_KAFKA__HELD_BYTES": text}).kafka.held_bytes == octets


@pytest.mark.parametrize("text", ["0", "-1", "many", "1 XB"])
def test_a_size_that_is_none_is_a_mistake(text: str) -> None:
    assert list(mistakes({"PIPELINE_KAFKA__HELD_BYTES": text})) == ["PIPELINE_KAFKA__HELD_BYTES"]


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "5s"])
def test_a_duration_is_a_positive_finite_number_of_seconds(text: str) -> None:
    assert load_settings({"PIPELINE_KAFKA__COMMIT_INTERVAL": "0.25"}).kafka.commit_interval == 0.25
    assert list(mistakes({"PIPELINE_KAFKA__COMMIT_INTERVAL": text})) == ["PIPELINE_KAFKA__COMMIT_INTERVAL"]


# What goes before what


def test_the_environment_goes_before_the_file_name_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, "roles: [logx]\nkafka:\n  group_id: of-the-file\n  client_id: of-the-file\n")
    settings = load_settings({"PIPELINE_KAFKA__GROUP_ID": "of-the-environment"}, file)
    assert (settings.kafka.group_id, settings.kafka.client_id) == ("of-the-environment", "of-the-file")
    assert settings.roles == ("logx",)


def test_the_environment_names_a_file_unless_the_command_does(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka: {group_id: named}")
    assert load_settings({CONFIG_FILE: str(file)}).kafka.group_id == "named"
    other = tmp_path / "other.yaml"
    other.write_text("kafka: {group_id: other}")
    assert load_settings({CONFIG_FILE: str(file)}, other).kafka.group_id == "other"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_settings({}, written(tmp_path, "# nothing\n")) == Settings()


@pytest.mark.parametrize(("text", "told"), [("- a\n", "must be a mapping"), ("a: [", "not YAML"), ("\x00", "not YAML")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path, text)
    assert told in mistakes({}, file)[str(file)]
    missing = tmp_path / "missing.yaml"
    assert "cannot be read" in mistakes({}, missing)[str(missing)]


def test_other_variables_are_nobodys_business() -> None:
    assert load_settings({"KAFKA__GROUP_ID": "x", "HOME": "y", "PIPELINES__X": "z"}) == Settings()


# Mistakes


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka: {chunk_records: 0}\nnonsense: 1\ntopics: {decide_request: typo}\n")
    told = mistakes(
        {
            "PIPELINE_KAFKA__FOO": "1",
            "PIPELINE_KAFAK__GROUP_ID": "x",
            "PIPELINE_OPS__PORT": "70000",
            "PIPELINE_LOGX__URL": "ftp://host",
            "PIPELINE_KAFKA__SECURITY_PROTOCOL": "TLS",
        },
        file,
    )
    assert set(told) == {
        "PIPELINE_KAFKA__CHUNK_RECORDS", "PIPELINE_NONSENSE", "PIPELINE_TOPICS__DECIDE_REQUEST", "PIPELINE_KAFKA__FOO",
        "PIPELINE_KAFAK", "PIPELINE_OPS__PORT", "PIPELINE_LOGX__URL", "PIPELINE_KAFKA__SECURITY_PROTOCOL",
    }  # fmt: skip
    for name in ("PIPELINE_NONSENSE", "PIPELINE_TOPICS__DECIDE_REQUEST", "PIPELINE_KAFKA__FOO", "PIPELINE_KAFAK"):
        assert told[name].startswith("no such setting")


def test_what_does_not_fit_together_is_told_beside_the_values_that_are_wrong() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(
            {
                f"PIPELINE_{name}": value
                for name, value in {
                    "OPS__PORT": "x",
                    "KAFKA__FOO": "1",
                    "KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
                    "KAFKA__SESSION_TIMEOUT": "6",
                    "OPS__DRAIN": "50",
                    "ROLES": '["logx","logx"]',
                    "TOPICS__TRACK_EVENTS": "odp.events",
                    "DECIDE__OPTIONS": "EVERYTHING",
                    "OPTIMIZELY__SDK_KEYS": '["a","a"]',
                }.items()
            }
        )
    told = "\n".join(caught.value.mistakes)
    for mistake in (
        "PIPELINE_OPS__PORT", "PIPELINE_KAFKA__FOO: no such setting", "sasl_username is needed with SASL",
        "sasl_password or sasl_password_file is needed", "session_timeout must be at least three times",
        "PIPELINE_KAFKA__REBALANCE_TIMEOUT: must be at least 15 s more than PIPELINE_OPS__DRAIN",
        "PIPELINE_ROLES: holds a role twice", "PIPELINE_TOPICS: two of them have one name",
        "options: EVERYTHING is none of", "sdk_keys holds a key twice",
    ):  # fmt: skip
        assert told.count(mistake) == 1, mistake
    assert len(caught.value.mistakes) == len(set(caught.value.mistakes))


def test_a_value_that_is_wrong_is_not_blamed_for_its_default() -> None:
    # The drain is told as a mistake; that it would be too long for the hand-over with some other value is not.
    told = mistakes({"PIPELINE_OPS__DRAIN": "soon", "PIPELINE_KAFKA__REBALANCE_TIMEOUT": "45"})
    assert list(told) == ["PIPELINE_OPS__DRAIN"]


def test_a_mistake_that_cannot_be_taken_out_is_told_once(tmp_path: Path) -> None:
    file = written(tmp_path, "1: no text\nops: {port: x}\nkafka: {session_timeout: 1}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, file)
    told = [mistake.split(":")[0] for mistake in caught.value.mistakes]
    assert sorted(told) == ["PIPELINE_1", "PIPELINE_KAFKA", "PIPELINE_OPS__PORT"]


def test_the_hand_over_has_fifteen_seconds_after_the_drain() -> None:
    values = {"PIPELINE_OPS__DRAIN": "25", "PIPELINE_KAFKA__REBALANCE_TIMEOUT": "40"}
    assert load_settings(values).kafka.rebalance_timeout == 40
    assert (
        "15 s more"
        in mistakes(values | {"PIPELINE_KAFKA__REBALANCE_TIMEOUT": "39.9"})["PIPELINE_KAFKA__REBALANCE_TIMEOUT"]
    )


@pytest.mark.parametrize(
    "servers",
    ["broker", "broker:", "broker:9092,", "broker:9092,other", "", ":9092", "a b:9092", "broker:port", "broker:9092 "],
)
def test_a_broker_needs_a_host_and_a_port(servers: str) -> None:
    assert list(mistakes({"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": servers})) == ["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"]


@pytest.mark.parametrize("servers", ["broker:9092", "a.b-c:1,10.0.0.1:65535", "[::1]:9092", "[fe80::1]:9092,b:9093"])
def test_brokers_are_hosts_and_ports_separated_by_commas(servers: str) -> None:
    assert load_settings({"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": servers}).kafka.bootstrap_servers == servers


@pytest.mark.parametrize("order", [1, -1])
def test_a_section_and_a_name_in_it_cannot_both_be_set(order: int) -> None:
    names = ["PIPELINE_KAFKA", "PIPELINE_KAFKA__GROUP_ID"][::order]
    assert mistakes(dict.fromkeys(names, "x"))


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, "sasl_username is needed with SASL"),
        ({"KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, "sasl_password or sasl_password_file is needed"),
        ({"KAFKA__SESSION_TIMEOUT": "6"}, "session_timeout must be at least three times heartbeat_interval"),
        ({"KAFKA__SSL_CERTFILE": "x"}, "ssl_certfile and ssl_keyfile go together"),
        ({"KAFKA__REBALANCE_TIMEOUT": "10"}, "must be at least 15 s more than PIPELINE_OPS__DRAIN"),
        ({"TOPICS__DECIDE_RESULTS": "decide.requests"}, "two of them have one name"),
        ({"ROLES": '["decide","decide"]'}, "holds a role twice"),
        ({"DECIDE__MAX_AGE": "1e10"}, "less than or equal to 1000000000"),
        ({"OPTIMIZELY__DATAFILE_URL_TEMPLATE": "https://host/x.json"}, "must hold %s once"),
        ({"OPTIMIZELY__DATAFILE_URL_TEMPLATE": "https://%s/%s.json"}, "must hold %s once"),
        ({"OPTIMIZELY__SDK_KEYS": '["a","a"]'}, "sdk_keys holds a key twice"),
        ({"DECIDE__OPTIONS": '["INCLUDE_REASONS","EVERYTHING"]'}, "options: EVERYTHING is none of"),
        ({"LOGX__BATCH_EVENTS": "10001"}, "less than or equal to 10000"),
        ({"LOGX__BATCH_BYTES": "4MB"}, "less than or equal to 3500000"),
        ({"ODP__EVENT_BATCH_SIZE": "501"}, "less than or equal to 500"),
    ],
)
def test_what_does_not_fit_together_or_passes_a_services_limit_is_a_mistake(environ: dict[str, str], told: str) -> None:
    assert told in " ".join(mistakes({f"PIPELINE_{name}": value for name, value in environ.items()}).values())


# Secrets


def test_no_mistake_and_no_settings_shown_quote_a_secret() -> None:
    secret = "correct-horse-battery"
    settings = load_settings({"PIPELINE_KAFKA__SASL_PASSWORD": secret})
    assert secret not in repr(settings)
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == secret
    environ = {
        "PIPELINE_KAFKA__SASL_PASSWORD": secret, "PIPELINE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "PIPELINE_OPTIMIZELY__SDK_KEYS": f"{secret}!",
    }  # fmt: skip
    assert secret not in str(mistakes(environ))


def test_a_masked_sdk_key_tells_keys_apart_and_cannot_be_used() -> None:
    assert masked("sandboxProduction01") == masked("sandboxProduction01")
    assert masked("sandboxProduction01") != masked("sandboxProduction02")
    assert masked("sandboxProduction01").startswith("sand***")
    # Of a short key the first four characters would be half of it.
    assert masked("12345678").startswith("***")
    assert "5678" not in masked("12345678")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().kafka.group_id = "x"  # type: ignore[misc]
