"""Scores of a forecast beside simple baselines, with confidence. Never imports torch."""
