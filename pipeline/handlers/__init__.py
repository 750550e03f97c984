"""One handler for each role and owned partition: records in, one effect out. No Kafka and no HTTP types here."""
