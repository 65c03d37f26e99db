"""Show a run to its user: status, views, speed, live display."""
