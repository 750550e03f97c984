"""Kafka: groups, the loop of a partition, what is committed, what is written. The only package that knows aiokafka."""
