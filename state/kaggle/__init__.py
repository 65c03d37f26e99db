"""Kaggle's side of what is true: its wire, its names, its settings. The only room that speaks to Kaggle's client library."""
