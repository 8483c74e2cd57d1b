"""Forecasting from a checkpoint: the rollout and the files it is written to."""
