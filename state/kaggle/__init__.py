"""Kaggle's side of what is true: its wire and its names. The only room that speaks to Kaggle's client library."""
