"""Datafiles of all SDK keys: asked for from the CDN, compiled on arrival, the last good one kept."""
