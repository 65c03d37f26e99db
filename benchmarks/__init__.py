"""Measurements side by side with a peer in one run, each prints a ratio; never part of the tests."""
