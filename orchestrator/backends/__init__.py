"""Places where sessions run, each behind the same port."""
