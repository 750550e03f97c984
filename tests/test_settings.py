"""Settings: how values are written, what goes before what, and that every mistake is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import CONFIG_FILE, ROLES, Settings, load, load_settings, masked


def mistakes(environ: dict[str, str], file: Path | None = None) -> dict[str, str]:
    """What a start would say: name of the setting -> the sentence."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ, file)
    return dict(one.split(": ", 1) for one in caught.value.mistakes)


def mistakes_in(file: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, file)
    return tuple(one.removeprefix(f"{file}:") for one in caught.value.mistakes)


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
        ("key1,key2", ("key1", "key2")),
        (" key1 , key2\n", ("key1", "key2")),
    ],
)
def test_a_list_is_json_or_words_separated_by_commas(text: str, keys: tuple[str, ...]) -> None:
    assert load_settings({"PIPELINE_OPTIMIZELY__SDK_KEYS": text}).optimizely.sdk_keys == keys


@pytest.mark.parametrize("text", ["[key1,key2]", '["key1"', "[1]", "key1,,key2", "a key", '["key1","key1"]', "x" * 129])
def test_a_list_that_is_no_json_or_holds_no_sdk_keys_is_a_mistake(text: str) -> None:
    told = " ".join(mistakes({"PIPELINE_OPTIMIZELY__SDK_KEYS": text}))
    assert "PIPELINE_OPTIMIZELY" in told


def test_a_list_that_is_no_json_is_told_how_to_write_one() -> None:
    told = mistakes({"PIPELINE_OPTIMIZELY__SDK_KEYS": "[key1]"})
    assert told == {"PIPELINE_OPTIMIZELY__SDK_KEYS": 'not a JSON list; write ["one","two"], or one,two'}


def test_a_list_with_nothing_between_two_commas_is_a_mistake() -> None:
    for text in ("one,,two", "one,", ","):
        told = {"PIPELINE_DECIDE__COPY_HEADERS": "holds an empty item: check the commas"}
        assert mistakes({"PIPELINE_DECIDE__COPY_HEADERS": text}) == told


@pytest.mark.parametrize(
    ("name", "word", "meant"),
    [
        ("KAFKA__SECURITY_PROTOCOL", "SASL", ""),
        ("KAFKA__SECURITY_PROTOCOL", "SASL_TLS", "; did you mean SASL_SSL?"),
        ("KAFKA__COMPRESSION_TYPE", "z", "; did you mean zstd?"),
        ("OPS__LOG_LEVEL", "warn", "; did you mean warning?"),
        ("OPS__LOG_LEVEL", "verbose", ""),
    ],
)
def test_a_word_is_guessed_where_only_one_can_be_meant(name: str, word: str, meant: str) -> None:
    (told,) = mistakes({f"PIPELINE_{name}": word}).values()
    assert told.startswith(f"{word} is none of ")
    assert told.partition(";")[1] + told.partition(";")[2] == meant


@pytest.mark.parametrize("keys", ["one two", "one;two", "one; two"])
def test_keys_that_are_not_separated_by_commas_are_told_to_be(keys: str) -> None:
    told = "item 1 holds a blank or a semicolon: separate keys with commas"
    assert mistakes({"PIPELINE_OPTIMIZELY__SDK_KEYS": keys}) == {"PIPELINE_OPTIMIZELY__SDK_KEYS": told}


def test_roles_are_a_list_of_known_names_and_not_empty() -> None:
    assert load_settings({"PIPELINE_ROLES": "logx"}).roles == ("logx",)
    assert load_settings({"PIPELINE_ROLES": '["decide","odp_events"]'}).roles == ("decide", "odp_events")
    assert load_settings({"PIPELINE_ROLES": "Decide, logx"}).roles == ("decide", "logx")
    assert load_settings({}).roles == ROLES
    told = "logs is none of decide, logx, odp_events; did you mean logx?"
    assert mistakes({"PIPELINE_ROLES": "decide,logs"}) == {"PIPELINE_ROLES": told}
    assert mistakes({"PIPELINE_ROLES": "[]"}) == {"PIPELINE_ROLES": "must hold at least one"}


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("64MiB", 64 * 1024**2),
        ("1024", 1024),
        ("1.5 KiB", 1536),
        ("2MB", 2_000_000),
        ("1kb", 1000),
        ("64Mi", 64 * 1024**2),
        ("1Gi", 1024**3),
        ("2k", 2000),
    ],
)
def test_a_size_is_bytes_or_text_with_a_unit(text: str, octets: int) -> None:
    assert load_settings({"PIPELINE_KAFKA__HELD_BYTES": text}).kafka.held_bytes == octets


@pytest.mark.parametrize("text", ["0", "-1", "-1MiB", "many", "1 XB", "MiB", "64MiBx"])
def test_a_size_that_is_none_is_a_mistake(text: str) -> None:
    assert list(mistakes({"PIPELINE_KAFKA__HELD_BYTES": text})) == ["PIPELINE_KAFKA__HELD_BYTES"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.25", 0.25), ("5s", 5), ("500ms", 0.5), ("1m", 60), ("1m30s", 90), ("2h", 7200), ("7d", 604800), (" 5 S ", 5)],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert load_settings({"PIPELINE_KAFKA__COMMIT_INTERVAL": text}).kafka.commit_interval == seconds


@pytest.mark.parametrize("text", ["0", "-1", "-5s", "inf", "nan", "5x", "s", "5s later", "1e10", "0ms"])
def test_a_duration_is_positive_finite_and_has_a_unit_that_is_one(text: str) -> None:
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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n", "must be a mapping"),
        ("a: [", "not YAML, line 1, column 5: expected the node content, but found '<stream end>'"),
        ("kafka:\n\tgroup_id: x\n", "not YAML, line 2, column 1: found character"),
        ("a: !unknown 1", "not YAML, line 1, column 4"),
        ("a: 2026-99-99", "not YAML: month must be in 1..12"),
        ("[" * 5000, "not YAML: maximum recursion depth"),
        ("\x00", "not YAML: unacceptable character"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path, text)
    assert mistakes({}, file)[str(file)].startswith(told)


def test_a_file_that_is_missing_a_directory_or_no_text_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    told = {str(missing): "cannot be read: No such file or directory"}
    # The password may be in it: that it is needed is not told, what is wrong in the environment is.
    environ = {"PIPELINE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "PIPELINE_OPS__PORT": "x"}
    assert mistakes(environ, missing) == told | {"PIPELINE_OPS__PORT": "must be a whole number, not x"}
    assert mistakes({}, tmp_path) == {str(tmp_path): "cannot be read: Is a directory"}
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert mistakes({}, binary) == {str(binary): "not UTF-8"}
    assert mistakes({CONFIG_FILE: " "}) == {CONFIG_FILE: "is empty: leave it out where there is no file"}


def test_other_variables_are_nobodys_business() -> None:
    assert load_settings({"KAFKA__GROUP_ID": "x", "HOME": "y", "PIPELINES__X": "z"}) == Settings()


# Mistakes


def test_every_mistake_is_told_at_once_under_the_name_it_was_written_with(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "kafka: {chunk_records: 0}\nnonsense: 1\ntopics:\n  decide_request: typo\n  odp_events: [a]\n"
        "ops: 5\nkafak: {a: 1}\nkafka.group_id: x\n",
    )
    environ = {
        "PIPELINE_KAFKA__FOO": "1",
        "PIPELINE_KAFAK__GROUP_ID": "x",
        "PIPELINE_OPS__PORT": "70000",
        "PIPELINE_LOGX__URL": "ftp://host",
        "PIPELINE_KAFKA__SECURITY_PROTOCOL": "TLS",
    }
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ, file)
    assert [one.replace(str(file), "FILE") for one in caught.value.mistakes] == [
        "FILE:2: nonsense: no such setting (`pipeline check-config` lists all)",
        "FILE:4: topics.decide_request: no such setting; did you mean topics.decide_requests?",
        "FILE:6: ops: is a section: its settings stand below it, indented",
        "FILE:7: kafak: no such section; did you mean kafka?",
        "FILE:8: kafka.group_id: no such section; did you mean `group_id` below `kafka:`?",
        "PIPELINE_KAFKA__FOO: no such setting (`pipeline check-config` lists all)",
        "PIPELINE_KAFAK__GROUP_ID: no such setting; did you mean PIPELINE_KAFKA__GROUP_ID?",
        "PIPELINE_KAFKA__SECURITY_PROTOCOL: TLS is none of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL",
        "FILE:1: kafka.chunk_records: must be greater than 0, not 0",
        "FILE:5: topics.odp_events: must be text",
        "PIPELINE_LOGX__URL: must begin with https:// or http://",
        "PIPELINE_OPS__PORT: must be less than or equal to 65535, not 70000",
    ]


def test_each_wrong_item_of_a_list_is_told_by_its_number_and_none_is_quoted(tmp_path: Path) -> None:
    file = written(tmp_path, "optimizely:\n  sdk_keys:\n    - good\n    - secret!\n    - 12\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, file)
    assert caught.value.mistakes == (
        f"{file}:2: optimizely.sdk_keys: item 2 may hold letters, digits and + / = _ -, at most 128 of them",
        f"{file}:2: optimizely.sdk_keys: item 3 must be text: put it in quotes",
    )


def test_a_name_that_is_twice_in_a_file_is_a_mistake_with_both_lines(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka: {group_id: a}\nops: {port: 1, port: 2}\nkafka: {client_id: b}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, file)
    assert caught.value.mistakes == (
        f"{file}:2: ops.port: is there twice, first on line 2", f"{file}:3: kafka: is there twice, first on line 1",
    )  # fmt: skip


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
                    "TOPICS__TRACK_EVENTS": "odp.events",
                    "PROFILES__SINGLE_WORKER": "true",
                    "PROFILES__REDIS_URL": "redis://host:6379/0",
                }.items()
            }
        )
    protocol = "is needed with PIPELINE_KAFKA__SECURITY_PROTOCOL=SASL_SSL"
    assert caught.value.mistakes == (
        "PIPELINE_KAFKA__FOO: no such setting (`pipeline check-config` lists all)",
        "PIPELINE_OPS__PORT: must be a whole number, not x",
        f"PIPELINE_KAFKA__SASL_USERNAME: {protocol}",
        f"PIPELINE_KAFKA__SASL_PASSWORD: {protocol}, or PIPELINE_KAFKA__SASL_PASSWORD_FILE",
        "PIPELINE_KAFKA__SESSION_TIMEOUT: must be at least three times PIPELINE_KAFKA__HEARTBEAT_INTERVAL (3 s)",
        "PIPELINE_TOPICS__ODP_EVENTS: odp.events is the name of PIPELINE_TOPICS__TRACK_EVENTS, too",
        "PIPELINE_PROFILES__SINGLE_WORKER: is set, and PIPELINE_PROFILES__REDIS_URL too: leave one of them out",
        "PIPELINE_KAFKA__REBALANCE_TIMEOUT: must be at least 15 s more than PIPELINE_OPS__DRAIN (50 s): partitions are "
        "drained and committed before they are given back",
    )


def test_what_does_not_fit_together_in_a_file_is_told_by_the_names_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka:\n  security_protocol: SASL_SSL\n  sasl_username: me\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, file)
    assert caught.value.mistakes == (
        "kafka.sasl_password: is needed with kafka.security_protocol=SASL_SSL, or kafka.sasl_password_file",
    )


def test_a_value_that_is_wrong_is_not_blamed_for_its_default() -> None:
    # The drain is told as a mistake; that it would be too long for the hand-over with some other value is not.
    told = mistakes({"PIPELINE_OPS__DRAIN": "soon", "PIPELINE_KAFKA__REBALANCE_TIMEOUT": "45"})
    assert list(told) == ["PIPELINE_OPS__DRAIN"]


def test_what_needs_a_value_that_is_wrong_is_not_told_to_be_missing() -> None:
    # The password file has a mistake of its own: to ask for a password, too, would be one mistake told twice.
    environ = {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__SASL_USERNAME": "me", "KAFKA__SASL_PASSWORD_FILE": ""}
    told = mistakes({f"PIPELINE_{name}": value for name, value in environ.items()})
    assert list(told) == ["PIPELINE_KAFKA__SASL_PASSWORD_FILE"]


def test_the_hand_over_has_fifteen_seconds_after_the_drain() -> None:
    values = {"PIPELINE_OPS__DRAIN": "25", "PIPELINE_KAFKA__REBALANCE_TIMEOUT": "40"}
    assert load_settings(values).kafka.rebalance_timeout == 40
    assert (
        "15 s more"
        in mistakes(values | {"PIPELINE_KAFKA__REBALANCE_TIMEOUT": "39.9"})["PIPELINE_KAFKA__REBALANCE_TIMEOUT"]
    )


@pytest.mark.parametrize(
    ("servers", "told"),
    [
        ("broker", "broker has no port; did you mean broker:9092?"),
        ("a:1,[::1]", "[::1] has no port; did you mean [::1]:9092?"),
        ("broker:", "broker:: nothing is no port (1 to 65535)"),
        ("broker:9092,", "holds an empty item: check the commas"),
        ("", "is empty: leave it out for its default"),
        (":9092", ":9092 has no host"),
        ("a b:9092", "a b:9092 holds a blank; write host:port, several separated by commas"),
        ("k1:9092, k2 :9092", "k2 :9092 holds a blank; write host:port, several separated by commas"),
        ("me:secret word@a:9092", "must be host:port, or several separated by commas"),
        ("broker:port", "broker:port: port is no port (1 to 65535)"),
        ("broker:65536", "broker:65536: 65536 is no port (1 to 65535)"),
        ("broker:0", "broker:0: 0 is no port (1 to 65535)"),
        ("::1:9092", "::1:9092: an IPv6 address stands in brackets, as in [::1]:9092"),
        ("PLAINTEXT://a:9092", "PLAINTEXT://a:9092 begins with a protocol; did you mean a:9092?"),
        ("kafka://a", "kafka://a begins with a protocol; did you mean a:9092?"),
        ("me:secret@a:9092", "must be host:port, or several separated by commas"),
    ],
)
def test_an_address_that_is_no_broker_is_told_what_it_lacks(servers: str, told: str) -> None:
    assert mistakes({"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": servers}) == {"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": told}


@pytest.mark.parametrize("servers", ["broker:9092", "a.b-c:1,10.0.0.1:65535", "[::1]:9092", "[fe80::1]:9092,b:9093"])
def test_brokers_are_hosts_and_ports_separated_by_commas(servers: str) -> None:
    assert load_settings({"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": servers}).kafka.bootstrap_servers == servers


def test_blanks_between_brokers_do_not_matter_and_yaml_may_have_a_list(tmp_path: Path) -> None:
    spaced = {"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": " a:1, b:2\n"}
    assert load_settings(spaced).kafka.bootstrap_servers == "a:1,b:2"
    file = written(tmp_path, "kafka: {bootstrap_servers: ['a:1', 'b:2']}")
    assert load_settings({}, file).kafka.bootstrap_servers == "a:1,b:2"


@pytest.mark.parametrize("order", [1, -1])
def test_a_section_and_a_name_in_it_cannot_both_be_set(order: int) -> None:
    names = ["PIPELINE_KAFKA", "PIPELINE_KAFKA__GROUP_ID"][::order]
    assert mistakes(dict.fromkeys(names, "x"))


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"KAFKA__SSL_CERTFILE": "x"}, "is needed with PIPELINE_KAFKA__SSL_CERTFILE"),
        ({"KAFKA__SSL_KEYFILE": "x"}, "is needed with PIPELINE_KAFKA__SSL_KEYFILE"),
        ({"KAFKA__SASL_PASSWORD": "x", "KAFKA__SASL_PASSWORD_FILE": "x"}, "leave one of them out"),
        ({"KAFKA__REBALANCE_TIMEOUT": "10"}, "must be at least 15 s more than PIPELINE_OPS__DRAIN"),
        (
            {"TOPICS__DECIDE_RESULTS": "decide.requests"},
            "decide.requests is the name of PIPELINE_TOPICS__DECIDE_REQUESTS",
        ),
        ({"TOPICS__ODP_EVENTS": "odp events"}, "may hold letters, digits and . _ -"),
        ({"TOPICS__ODP_EVENTS": ".."}, "may hold letters, digits and . _ -"),
        ({"ROLES": '["decide","decide"]'}, "holds decide twice"),
        ({"KAFKA__SESSION_TIMEOUT": "30d"}, "less than or equal to 2147483"),
        ({"KAFKA__REQUEST_TIMEOUT": "10us"}, "greater than or equal to 0.001"),
        ({"KAFKA__FETCH_BYTES": "2GiB"}, "less than or equal to 1073741824"),
        ({"ODP__MAX_LINGER": "inf"}, "less than or equal to 1000000000, not inf"),
        ({"ODP__MAX_LINGER": "nan"}, "must be greater than or equal to 0, not nan"),
        ({"CMAB__RETRIES": "1.5"}, "must be a whole number, not 1.5"),
        ({"ODP__ALLOW_HTTP": "maybe"}, "must be true or false, not maybe"),
        ({"ODP__ALLOWED_HOSTS": "https://api.zaius.com"}, "only the name of the host"),
        ({"ODP__ALLOWED_HOSTS": "api.zaius.com:443"}, "only the name of the host"),
        ({"ODP__ALLOWED_HOSTS": "api.*.com"}, "`*.` at its beginning"),
        ({"LOGX__URL": "logx.example"}, "must begin with https:// or http://"),
        ({"LOGX__EU_URL": "https://"}, "must be an address such as https://host/path"),
        ({"LOGX__URL": "https://host:99999/"}, "check the host and the port"),
        ({"OPTIMIZELY__DATAFILE_URL_TEMPLATE": "host/%s"}, "must begin with https:// or http://"),
        ({"DECIDE__MAX_AGE": "1e10"}, "less than or equal to 1000000000"),
        ({"OPTIMIZELY__DATAFILE_URL_TEMPLATE": "https://host/x.json"}, "must hold %s once"),
        ({"OPTIMIZELY__DATAFILE_URL_TEMPLATE": "https://%s/%s.json"}, "must hold %s once"),
        ({"OPTIMIZELY__SDK_KEYS": '["a","a"]'}, "twice"),
        ({"DECIDE__OPTIONS": '["INCLUDE_REASONS","EVERYTHING"]'}, "EVERYTHING is none of"),
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


def test_a_masked_sdk_key_ends_as_the_key_does_and_cannot_be_used() -> None:
    assert masked("sandboxProduction01") == "348a…on01"
    assert masked("sandboxProduction02") == "7cc4…on02"
    # Keys that end alike have series of their own.
    assert masked("sandboxStaging0001") != masked("sandboxRevoked0001")
    # Never more than a quarter of a short key; a checksum tells those apart.
    assert masked("12345678").endswith("…78")
    assert masked("87654378") != masked("12345678")
    assert masked("abc").endswith("…")
    assert len({masked(key) for key in ("", "a", "b", "abc", "abd")}) == 5
    for length in range(40):
        assert len(masked("x" * length).partition("…")[2]) <= length / 4


def test_an_empty_variable_is_a_mistake_except_where_nothing_is_a_value() -> None:
    empty = "is empty: leave it out for its default"
    for name in ("KAFKA__CLIENT_ID", "KAFKA__SASL_PASSWORD", "OPS__PORT", "ODP__ALLOW_HTTP", "KAFKA__SSL_CAFILE"):
        assert mistakes({f"PIPELINE_{name}": " "}) == {f"PIPELINE_{name}": empty}
    assert load_settings({"PIPELINE_ODP__ALLOWED_HOSTS": ""}).odp.allowed_hosts == ()
    assert load_settings({"PIPELINE_PROFILES__KEY_PREFIX": ""}).profiles.key_prefix == ""


def test_nothing_after_a_name_in_a_file_is_a_mistake_and_an_empty_section_is_none(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka:\nops:\n  drain:\n  log_format: null\n")
    assert mistakes({}, file) == {f"{file}:3": "ops.drain: is empty: leave it out for its default"}


def test_a_value_in_quotes_is_a_mistake_except_for_a_password() -> None:
    told = "its value is in quotes, which count as part of it: leave them out"
    assert mistakes({"PIPELINE_OPTIMIZELY__SDK_KEYS": '"key"'}) == {"PIPELINE_OPTIMIZELY__SDK_KEYS": told}
    assert mistakes({"PIPELINE_OPS__PORT": "'8088'"}) == {"PIPELINE_OPS__PORT": told}
    password = load_settings({"PIPELINE_KAFKA__SASL_PASSWORD": '"x"'}).kafka.sasl_password
    assert password is not None
    assert password.get_secret_value() == '"x"'


def test_the_newline_at_the_end_of_a_secret_is_no_part_of_it() -> None:
    settings = load_settings({"PIPELINE_KAFKA__SASL_PASSWORD": " x \n", "PIPELINE_OPTIMIZELY__SDK_KEYS": "key\n"})
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == " x "
    assert settings.optimizely.sdk_keys == ("key",)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ODP__ALLOW_HTTP", "yes", True),
        ("ODP__ALLOW_HTTP", "Off\n", False),
        ("OPS__PORT", " 8080 ", 8080),
        ("OPS__LOG_LEVEL", "INFO", "info"),
        ("KAFKA__SECURITY_PROTOCOL", "sasl_plaintext", "SASL_PLAINTEXT"),
        ("DECIDE__OPTIONS", "include_reasons", ("INCLUDE_REASONS",)),
        ("KAFKA__GROUP_ID", " mine\n", "mine"),
    ],
)
def test_a_word_is_taken_in_any_case_and_blanks_around_a_value_do_not_matter(
    name: str, text: str, value: object
) -> None:
    environ = {f"PIPELINE_{name}": text}
    if value == "SASL_PLAINTEXT":
        environ |= {"PIPELINE_KAFKA__SASL_USERNAME": "me", "PIPELINE_KAFKA__SASL_PASSWORD": "x"}
    section, _, field = name.lower().partition("__")
    assert getattr(getattr(load_settings(environ), section), field) == value


def test_yaml_does_not_turn_true_into_one(tmp_path: Path) -> None:
    file = written(tmp_path, "ops: {port: true, drain: yes}\nkafka: {held_bytes: on, group_id: 7}\n")
    told = mistakes_in(file)
    assert [line.split(": ")[1] for line in told] == ["kafka.group_id", "kafka.held_bytes", "ops.port", "ops.drain"]


# Other programs' variables


SERVICE_LINKS = {
    "PIPELINE_SERVICE_HOST": "10.0.0.1", "PIPELINE_SERVICE_PORT": "8088", "PIPELINE_SERVICE_PORT_OPS": "8088",
    "PIPELINE_PORT": "tcp://10.0.0.1:8088", "PIPELINE_PORT_8088_TCP": "tcp://10.0.0.1:8088",
    "PIPELINE_PORT_8088_TCP_PROTO": "tcp", "PIPELINE_PORT_8088_TCP_PORT": "8088",
    "PIPELINE_PORT_8088_TCP_ADDR": "10.0.0.1", "PIPELINE_OPS_PORT": "tcp://10.0.0.1:8088",
    "PIPELINE_KAFKA_SERVICE_HOST": "10.0.0.2",
}  # fmt: skip


def test_a_setting_in_two_spellings_is_a_mistake() -> None:
    told = mistakes({"PIPELINE_kafka__group_id": "a", "PIPELINE_KAFKA__GROUP_ID": "b"})
    assert told == {"PIPELINE_KAFKA__GROUP_ID": "is set as PIPELINE_kafka__group_id, too: leave one of them out"}


def test_kubernetes_links_to_services_are_one_warning_that_says_how_to_be_rid_of_them() -> None:
    assert load(SERVICE_LINKS).warnings == (
        "PIPELINE_SERVICE_HOST, PIPELINE_SERVICE_PORT and 8 more: no settings, but Kubernetes' links to a Service; "
        "set `enableServiceLinks: false` for the pod",
    )
    assert load(SERVICE_LINKS).settings == Settings()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PIPELINE_KAFKA_BOOTSTRAP_SERVERS", "PIPELINE_KAFKA__BOOTSTRAP_SERVERS"),
        ("PIPELINE_OPITMIZELY__SDK_KEYS", "PIPELINE_OPTIMIZELY__SDK_KEYS"),
        ("PIPELINE_KAFKA__BOOTSTRAP_SERVER", "PIPELINE_KAFKA__BOOTSTRAP_SERVERS"),
        ("PIPELINE_KAFKA__SDK_KEYS", "PIPELINE_OPTIMIZELY__SDK_KEYS"),
        ("PIPELINE_OPS_PORT", "PIPELINE_OPS__PORT"),
        ("PIPELINE_ROLE", "PIPELINE_ROLES"),
        ("PIPELINE_CONFIG", CONFIG_FILE),
    ],
)
def test_a_slip_in_a_name_is_a_mistake_with_the_name_that_is_meant(name: str, meant: str) -> None:
    assert mistakes({name: "8088"}) == {name: f"no such setting; did you mean {meant}?"}


def test_a_variable_of_another_program_is_a_warning() -> None:
    loaded = load({"PIPELINE_RUN_ID": "7", "PIPELINE_LOG_LEVEL": "debug"})
    assert loaded.settings == Settings()
    assert loaded.warnings == (
        "PIPELINE_RUN_ID: no such setting (`pipeline check-config` lists all)",
        "PIPELINE_LOG_LEVEL: no such setting; did you mean PIPELINE_OPS__LOG_LEVEL?",
    )


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().kafka.group_id = "x"  # type: ignore[misc]
