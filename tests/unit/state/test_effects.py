from __future__ import annotations

from state import effects


def test_effects_are_heard_while_somebody_listens_and_go_unheard_otherwise() -> None:
    heard: list[tuple[str, str]] = []
    effects.done("write", "before")
    effects.observe(lambda kind, what: heard.append((kind, what)))
    effects.done("rename", "heard")
    effects.observe(None)
    effects.done("write", "after")
    assert heard == [("rename", "heard")]
