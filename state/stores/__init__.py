"""Durable stores: the run store and the checkpoint store."""
