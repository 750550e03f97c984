"""Optimizely decisions over Kafka. The spine: `assembly.py` builds, `runtime.py` runs."""
