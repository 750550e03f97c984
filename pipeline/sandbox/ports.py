"""The ports of the documentation, or others where something listens there already, which is then said.

Used by the demo that stays up and by `pipeline sandbox`: the commands they print follow the port that was chosen.
"""

from __future__ import annotations

from pipeline.sandbox.display import Display
from pipeline.sandbox.existing_kafka import fault_of
from pipeline.sandbox.processes import free_port, port_is_free

KAFKA_PORT = 9092
OPS_PORT = 8088


def kafka_port(shown: Display) -> int:
    """Port 9092 if it is free, else another."""
    if port_is_free(KAFKA_PORT):
        return KAFKA_PORT
    port = free_port()
    owner = "another Kafka" if fault_of("127.0.0.1", KAFKA_PORT) is None else "a program that is no Kafka"
    shown.step(f"Port {KAFKA_PORT} is taken by {owner}. Kafka starts on port {port}; the commands below name it.")
    return port


def ops_port(shown: Display) -> int:
    """Port 8088 if it is free, else another."""
    if port_is_free(OPS_PORT):
        return OPS_PORT
    port = free_port()
    shown.step(f"Port {OPS_PORT} is taken. The worker's /ready, /health and /metrics are on port {port}.")
    return port
