"""The files that settings name: every fault is told before anything is started, all of them at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError, StartFailed
from pipeline.kafka import client
from pipeline.settings import KafkaSettings, load, needed_by_a_worker, read_password, usable_files, without_effect
from tests.settings.certificates import CERTIFICATE, KEY, KEY_OF_ANOTHER, KEY_WITH_PASSWORD


def told(**settings: object) -> list[str]:
    """The mistakes that a start reports of these settings of Kafka, without the prefix of each."""
    environ = {f"PIPELINE_KAFKA__{name.upper()}": str(value) for name, value in settings.items()}
    try:
        load(environ, checks=(usable_files,))
    except ConfigurationError as error:
        return [mistake.removeprefix("PIPELINE_KAFKA__") for mistake in error.mistakes]
    return []


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, Path]:
    """Files of a client certificate that can be used."""
    texts = {"ssl_cafile": CERTIFICATE, "ssl_certfile": CERTIFICATE, "ssl_keyfile": KEY}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in texts}


def test_certificates_and_a_key_that_belong_together_are_taken(tls: dict[str, Path]) -> None:
    assert told(security_protocol="SSL", **tls) == []


@pytest.mark.parametrize(
    ("name", "text", "mistake"),
    [
        ("ssl_cafile", "x", "SSL_CAFILE: FILE holds no certificates (PEM)"),
        ("ssl_cafile", KEY, "SSL_CAFILE: FILE holds no certificates (PEM)"),
        ("ssl_certfile", KEY, "SSL_CERTFILE: FILE holds no certificate (PEM)"),
        (
            "ssl_keyfile",
            KEY_OF_ANOTHER,
            "SSL_KEYFILE: FILE is not the key of the certificate in PIPELINE_KAFKA__SSL_CERTFILE",
        ),
        ("ssl_keyfile", "x", "SSL_KEYFILE: FILE and PIPELINE_KAFKA__SSL_CERTFILE are no key and certificate (PEM)"),
        (
            "ssl_keyfile",
            KEY_WITH_PASSWORD,
            "SSL_KEYFILE: FILE is encrypted: write it without a password, as `openssl pkey` does",
        ),
    ],
)
def test_a_certificate_or_key_that_cannot_be_used_is_told(
    tls: dict[str, Path], name: str, text: str, mistake: str
) -> None:
    tls[name].write_text(text)
    begin, _, rest = mistake.partition(": FILE ")
    assert told(security_protocol="SSL", **tls) == [f"{begin}: {tls[name]} {rest}"]


def test_every_file_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    found = told(
        security_protocol="SASL_SSL", sasl_username="me", sasl_password_file=tmp_path, ssl_cafile=tmp_path / "ca",
        ssl_certfile=tmp_path / "crt", ssl_keyfile=tmp_path,
    )  # fmt: skip
    assert found == [
        f"SASL_PASSWORD_FILE: {tmp_path} cannot be read: Is a directory",
        f"SSL_CAFILE: {tmp_path / 'ca'} cannot be read: No such file or directory",
        f"SSL_CERTFILE: {tmp_path / 'crt'} cannot be read: No such file or directory",
        f"SSL_KEYFILE: {tmp_path} cannot be read: Is a directory",
    ]


@pytest.mark.parametrize(("content", "fault"), [(b"\n", "is empty"), (b"\xff", "is not UTF-8")])
def test_a_password_file_without_a_password_is_told(tmp_path: Path, content: bytes, fault: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    settings = {"security_protocol": "SASL_SSL", "sasl_username": "me", "sasl_password_file": file}
    assert told(**settings) == [f"SASL_PASSWORD_FILE: {file} {fault}"]


def test_the_newline_at_the_end_of_a_password_file_is_no_part_of_the_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b" secret \r\n")
    assert read_password(file) == " secret "
    settings = KafkaSettings(security_protocol="SASL_PLAINTEXT", sasl_username="me", sasl_password_file=file)
    assert client._password(settings) == " secret "
    file.unlink()
    with pytest.raises(StartFailed, match=r"PIPELINE_KAFKA__SASL_PASSWORD_FILE: .* cannot be read: No such file"):
        client._password(settings)


def test_files_that_the_protocol_does_not_use_are_not_looked_at_but_warned_of() -> None:
    environ = {"PIPELINE_KAFKA__SSL_CAFILE": "/none", "PIPELINE_KAFKA__SASL_USERNAME": "me"}
    loaded = load(environ, checks=(usable_files,), advice=(without_effect,))
    assert loaded.warnings == (
        "PIPELINE_KAFKA__SSL_CAFILE: has no effect with PIPELINE_KAFKA__SECURITY_PROTOCOL=PLAINTEXT",
        "PIPELINE_KAFKA__SASL_USERNAME: has no effect with PIPELINE_KAFKA__SECURITY_PROTOCOL=PLAINTEXT",
    )


def test_a_file_that_a_settings_file_leaves_out_is_not_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("kafka: {ssl_cafile: null}\n")
    assert load({}, file, advice=(without_effect,)).warnings == ()


def test_files_are_looked_at_beside_values_that_are_wrong_and_sdk_keys_asked_for() -> None:
    environ = {
        "PIPELINE_KAFKA__SECURITY_PROTOCOL": "SSL", "PIPELINE_KAFKA__SSL_CAFILE": "/none/ca.crt",
        "PIPELINE_OPS__PORT": "x",
    }  # fmt: skip
    with pytest.raises(ConfigurationError) as caught:
        load(environ, checks=(needed_by_a_worker, usable_files))
    assert caught.value.mistakes == (
        "PIPELINE_OPS__PORT: must be a whole number, not x",
        "PIPELINE_OPTIMIZELY__SDK_KEYS: name at least one SDK key",
        "PIPELINE_KAFKA__SSL_CAFILE: /none/ca.crt cannot be read: No such file or directory",
    )


def test_sdk_keys_that_are_wrong_are_not_told_to_be_missing() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"PIPELINE_OPTIMIZELY__SDK_KEYS": "a b"}, checks=(needed_by_a_worker,))
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("PIPELINE_OPTIMIZELY__SDK_KEYS: item 1 holds a blank or a semicolon")


@pytest.mark.parametrize("command", [["run"], ["check-config"], ["topics", "create"], ["topics", "describe"]])
def test_each_command_that_connects_refuses_the_file_before_it_waits_for_a_broker(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")} | {
        "PIPELINE_KAFKA__SECURITY_PROTOCOL": "SSL", "PIPELINE_KAFKA__SSL_CAFILE": "/none/ca.crt",
        "PIPELINE_OPTIMIZELY__SDK_KEYS": "key",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *command], capture_output=True, timeout=60, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert "PIPELINE_KAFKA__SSL_CAFILE: /none/ca.crt cannot be read: No such file or directory" in line
