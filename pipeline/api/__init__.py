"""HTTP: what people, probes and Prometheus ask the worker."""
