"""Real parts to try the worker with: Apache Kafka, stand-ins for the services, project data, traffic, a demo."""
