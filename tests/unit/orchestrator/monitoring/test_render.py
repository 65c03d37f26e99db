from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rich.console import Console, RenderableType

from orchestrator.monitoring.render import checkpoints_tree, format_bytes, live_line, live_panel, runs_table, status_panel
from orchestrator.monitoring.views import CheckpointView, SessionView, StatusView, data_views
from state.ledger import Event
from state.report import Heartbeat, Phase
from tests.factories import DATA, run_record

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def drawn(renderable: RenderableType, width: int = 140) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def session(number: int, **values: object) -> SessionView:
    return SessionView.model_validate(
        {
            "number": number,
            "attempt": 1,
            "backend": "local",
            "state": "done",
            "outcome": "budget",
            "reason": "the time is used up",
            "start_step": 10 * (number - 1),
            "end_step": 10 * number,
            "started_at": NOW - timedelta(minutes=5),
            "ended_at": NOW,
            "duration_s": 300.0,
            "start_checkpoint": None,
            "branch": None,
            "comparison": None,
            **values,
        }
    )


def status(*sessions: SessionView, **values: object) -> StatusView:
    return StatusView.model_validate(
        {
            "run": "my-run",
            "state": "active",
            "message": None,
            "exit_code": 0,
            "backend": "local",
            "step": 20,
            "total_steps": 100,
            "head": "step-00000020-s002a1",
            "state_sha256": "ab" * 32,
            "waiting_for": "session 3 attempt 1 is running on local",
            "goodput": 0.875,
            "steps_per_s": 2.5,
            "eta": NOW + timedelta(seconds=90),
            "live": None,
            "sessions": sessions,
            **values,
        }
    )


def test_the_status_says_all_that_a_user_asks_for() -> None:
    text = drawn(status_panel(status(session(1), session(2, outcome="lost", reason="killed")), [], NOW))
    for part in ("my-run", "20 of 100", "step-00000020-s002a1", "87.5%", "2.5 steps/s", "in 1m30s", "lost", "killed", "0 -> 10"):
        assert part in text, part


def test_a_status_of_a_thousand_sessions_shows_the_last_ones_and_says_so() -> None:
    view = status(*(session(number) for number in range(1, 1001)))
    assert "980 earlier attempts are not shown" in drawn(status_panel(view, [], NOW))
    assert "earlier attempts" not in drawn(status_panel(view, [], NOW, all_sessions=True))


def test_markup_in_a_reason_is_shown_as_it_is() -> None:
    text = drawn(status_panel(status(session(1, reason="[red]not markup[/red]")), [Event(at=NOW, text="[x]")], NOW), width=200)
    assert "[red]not markup[/red]" in text
    assert "[x]" in text


def test_data_versions_have_a_line_each_once_there_is_more_than_one() -> None:
    later = DATA.evolve(first_step=30, folder="data-2", sha256="e" * 64, tokens={"en": 25_000})
    one, two = data_views(run_record()), data_views(run_record(data=(DATA, later)))
    assert "version" not in drawn(status_panel(status(data=one), [], NOW))
    text = drawn(status_panel(status(data=two), [], NOW))
    assert "version 1 from step 1 on: 1,000 tokens (en 100%), sha256 dddddddddddd" in text
    assert "version 2 from step 31 on: 25,000 tokens (en 100%), sha256 eeeeeeeeeeee" in text


def test_the_live_line_shows_session_step_loss_speed_time_left_and_eta() -> None:
    beat = Heartbeat(
        at=NOW, pid=1, phase=Phase.TRAINING, start_step=20, step=23, loss=3.25, tokens_per_s=12345.0, left_s=61, steps_per_s=1.0
    )
    line = live_line(status(session(3, ended_at=None, outcome=None), live=beat), NOW)
    for part in ("session 3", "step 23 of 100", "loss 3.2500", "12,345 tokens/s", "1m01s left", "ETA"):
        assert part in line, part
    assert "session 3" in drawn(live_panel(status(session(3), live=beat), [Event(at=NOW, text="hello")], NOW))


def test_without_a_heartbeat_the_live_line_says_what_the_run_waits_for() -> None:
    assert live_line(status(), NOW) == "my-run: step 20 of 100, session 3 attempt 1 is running on local"


def test_a_home_with_several_runs_is_a_table() -> None:
    text = drawn(runs_table([status(), status(run="other", state="finished", waiting_for=None, message="done", eta=None)], NOW))
    assert "my-run" in text
    assert "other" in text


def test_the_lineage_is_drawn_as_a_tree_with_branches_indented() -> None:
    def view(name: str, step: int, parent: str | None, **values: object) -> CheckpointView:
        return CheckpointView.model_validate(
            {
                "id": name,
                "step": step,
                "parent": parent,
                "session": 1,
                "attempt": 1,
                "fence": 1,
                "branch": None,
                "head": False,
                "verified": True,
                "state": "verified",
                "note": None,
                "state_sha256": "cd" * 32,
                "total_bytes": 1_500_000,
                "created_at": NOW,
                **values,
            }
        )

    text = drawn(
        checkpoints_tree(
            [
                view("a", 1, None, state="pruned", verified=False),
                view("b", 2, "a", head=True),
                view("c", 2, "a", branch="rerun-s001a2"),
            ],
            NOW,
        )
    )
    assert "└ c" in text
    assert "verified, head" in text
    assert "1.5 MB" in text


def test_sizes_are_written_as_people_read_them() -> None:
    assert [format_bytes(size) for size in (5, 1_500, 2_500_000, 3e9, 4e12)] == ["5 B", "1.5 kB", "2.5 MB", "3.0 GB", "4.0 TB"]
