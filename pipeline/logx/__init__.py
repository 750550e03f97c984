"""Impressions and conversions on their way to Optimizely: what is sent (payload) and how it gets there (dispatcher)."""
