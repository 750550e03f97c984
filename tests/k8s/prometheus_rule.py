"""The alerts as a resource of the Prometheus Operator, made from the rules file, which is what promtool tests.

`python -m tests.k8s.prometheus_rule` writes it; `test_rules.py` fails while the two differ.
"""

from __future__ import annotations

from pathlib import Path

import yaml

RULES = Path(__file__).parents[2] / "k8s" / "rules" / "decision-pipeline.rules.yml"
RESOURCE = RULES.parent / "prometheusrule.yaml"
_HEAD = "# Made from decision-pipeline.rules.yml by `make rules`: change that file, not this one.\n"


def resource() -> str:
    """The text of the resource."""
    labels = {"app.kubernetes.io/name": "decision-pipeline", "app.kubernetes.io/instance": "decision-pipeline"}
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "decision-pipeline", "labels": labels},
        "spec": yaml.safe_load(RULES.read_text("utf-8")),
    }
    return _HEAD + yaml.safe_dump(document, sort_keys=False, width=120)


if __name__ == "__main__":
    RESOURCE.write_text(resource(), "utf-8")
