"""Publish a run's weights as a Kaggle dataset and a Kaggle model."""
