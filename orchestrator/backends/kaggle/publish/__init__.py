"""Publish a run's weights: as a dataset, and as a model."""
