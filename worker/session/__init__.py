"""One session: its story (`runner`), time budget, lock, watchdog, telemetry, report."""
