"""The customer data platform (ODP): segments by GraphQL, and events."""
