"""Frozen documents, pure rules and durable stores that the controller and the worker share."""
