"""Run the worker as a child process: its command line, its verbs, and the preparation of data."""
