"""Looks at the files that settings name, before anything is started: are they there, can they be read and used?

For Kafka's certificates that is asked of the same library that will use them. A command hands these checks to `load`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

from pipeline.settings.conflicts import Conflict
from pipeline.settings.sections import KafkaSettings, Settings

_PROTOCOL = "kafka.security_protocol"


def read_password(file: Path) -> str:
    """The password that a file holds, without the newline at its end. Raises OSError or UnicodeDecodeError."""
    return file.read_text("utf-8").rstrip("\r\n")


def needed_by_a_worker(settings: Settings) -> Iterator[Conflict]:
    """A worker has something to decide by."""
    if not settings.optimizely.sdk_keys:
        yield Conflict(("optimizely.sdk_keys",), "name at least one SDK key")


def usable_files(settings: Settings) -> Iterator[Conflict]:
    """The files of the connection to Kafka, as far as the protocol uses them."""
    kafka = settings.kafka
    if kafka.security_protocol.startswith("SASL") and kafka.sasl_password_file is not None:
        yield from _password(kafka.sasl_password_file)
    if kafka.security_protocol.endswith("SSL"):
        yield from _certificates(kafka)


def without_effect(settings: Settings) -> Iterator[Conflict]:
    """Settings that the protocol does not use: perhaps the protocol is not the one that is meant."""
    kafka = settings.kafka
    for begin, used in (
        ("ssl_", kafka.security_protocol.endswith("SSL")),
        ("sasl_", "SASL" in kafka.security_protocol),
    ):
        for name in sorted(kafka.model_fields_set):
            if name.startswith(begin) and not used and getattr(kafka, name) is not None:
                text = f"has no effect with {{{_PROTOCOL}}}={kafka.security_protocol}"
                yield Conflict((f"kafka.{name}",), text)


def _password(file: Path) -> Iterator[Conflict]:
    name = "kafka.sasl_password_file"
    fault = _unreadable(file)
    if fault:
        yield Conflict((name,), fault)
        return
    try:
        if not read_password(file):
            yield Conflict((name,), f"{file} is empty")
    except UnicodeDecodeError:
        yield Conflict((name,), f"{file} is not UTF-8")


def _certificates(kafka: KafkaSettings) -> Iterator[Conflict]:
    files = {name: getattr(kafka, name) for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")}
    faults = {name: _unreadable(file) for name, file in files.items() if file is not None}
    for name, fault in faults.items():
        if fault:
            yield Conflict((f"kafka.{name}",), fault)
    context = ssl.create_default_context()
    if faults.get("ssl_cafile") == "":
        try:
            context.load_verify_locations(files["ssl_cafile"])
        except ssl.SSLError:
            yield Conflict(("kafka.ssl_cafile",), f"{files['ssl_cafile']} holds no certificates (PEM)")
    if faults.get("ssl_certfile") == faults.get("ssl_keyfile") == "":
        yield from _pair(context, kafka)


def _pair(context: ssl.SSLContext, kafka: KafkaSettings) -> Iterator[Conflict]:
    certificate, key = "kafka.ssl_certfile", "kafka.ssl_keyfile"
    assert kafka.ssl_certfile is not None
    assert kafka.ssl_keyfile is not None
    asked = []

    def password() -> str:
        # Without this OpenSSL asks on the terminal, and a worker would wait there for ever.
        asked.append(True)
        return ""

    if b"CERTIFICATE-----" not in kafka.ssl_certfile.read_bytes():
        yield Conflict((certificate,), f"{kafka.ssl_certfile} holds no certificate (PEM)")
        return
    try:
        context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)
        if asked:
            yield Conflict(
                (key,), f"{kafka.ssl_keyfile} is encrypted: write it without a password, as `openssl pkey` does"
            )
        elif reason == "KEY_VALUES_MISMATCH":
            yield Conflict((key,), f"{kafka.ssl_keyfile} is not the key of the certificate in {{{certificate}}}")
        else:
            yield Conflict(
                (key, certificate), f"{kafka.ssl_keyfile} and {{{certificate}}} are no key and certificate (PEM)"
            )


def _unreadable(file: Path) -> str:
    """Why a file cannot be read; empty if it can."""
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    return ""
