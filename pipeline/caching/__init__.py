"""Caches that the process shares: bounded, with expiry, in memory."""
