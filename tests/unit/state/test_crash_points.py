from __future__ import annotations

from state import crash_points


def test_effects_are_heard_while_somebody_listens_and_go_unheard_otherwise() -> None:
    heard: list[tuple[str, str]] = []
    crash_points.done("write", "before")
    crash_points.observe(lambda kind, what: heard.append((kind, what)))
    crash_points.done("rename", "heard")
    crash_points.observe(None)
    crash_points.done("write", "after")
    assert heard == [("rename", "heard")]
