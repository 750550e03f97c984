"""Contextual bandits: what the prediction service chooses for a user (`client.py`), remembered (`predictions.py`)."""

from pipeline.cmab.predictions import FORGETTING, Predictions

__all__ = ["FORGETTING", "Predictions"]
