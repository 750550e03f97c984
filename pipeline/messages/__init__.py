"""What is on the topics: the schemas compiled, records parsed into requests and events. No I/O, no clock."""
