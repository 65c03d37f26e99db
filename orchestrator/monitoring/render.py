"""Render views as text and rich tables for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.monitoring.views import CheckpointView, DataView, SessionView, StatusView
from state.ledger import Event
from state.lineage import tree
from state.quantities import format_duration
from state.report import Heartbeat

_STATE_STYLE = {"active": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}
_OUTCOME_STYLE = {
    "completed": "green",
    "budget": "green",
    "stopped": "yellow",
    "failed": "red",
    "hung": "red",
    "lost": "red",
}
SESSIONS_SHOWN = 20
SESSIONS_SHOWN_LIVE = 6


def format_bytes(num_bytes: float) -> str:
    """Return a size in decimal units, such as `15.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def format_moment(moment: datetime | None, now: datetime) -> str:
    """Return a moment in local time, with its date unless that is today."""
    if moment is None:
        return "-"
    local = moment.astimezone()
    return f"{local:%H:%M:%S}" if local.date() == now.astimezone().date() else f"{local:%Y-%m-%d %H:%M}"


def status_panel(view: StatusView, events: Sequence[Event], now: datetime, *, all_sessions: bool = False) -> RenderableType:
    """Return the full status of a run, as `status` shows it."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("run", Text.assemble((view.run, "bold"), "  ", (view.state, _STATE_STYLE.get(view.state, ""))))
    if view.message:
        facts.add_row("", Text(view.message))
    facts.add_row("steps", _steps(view))
    facts.add_row("head", Text(f"{view.head}  state sha256 {(view.state_sha256 or '')[:12]}" if view.head else "none yet"))
    facts.add_row("speed", Text(_speed(view, now)))
    if len(view.data) > 1:
        facts.add_row("data", Text("\n".join(_data(version) for version in view.data)))
    if view.waiting_for:
        facts.add_row("waiting for", Text(view.waiting_for))
    parts: list[RenderableType] = [facts]
    if view.sessions:
        parts += ["", sessions_table(view.sessions, now, limit=None if all_sessions else SESSIONS_SHOWN)]
    if events:
        parts += ["", history(events, now)]
    return Group(*parts)


def _data(version: DataView) -> str:
    languages = ", ".join(f"{name} {share:.0%}" for name, share in version.mixture.items())
    return (
        f"version {version.version} from step {version.from_step:,} on: {sum(version.tokens.values()):,} tokens "
        f"({languages}), sha256 {version.sha256[:12]}"
    )


def _steps(view: StatusView) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_row(
        ProgressBar(total=view.total_steps, completed=view.step, width=24),
        Text(f"{view.step:,} of {view.total_steps:,} saved ({100 * view.step / view.total_steps:.1f} %)"),
    )
    return row


def _speed(view: StatusView, now: datetime) -> str:
    parts = [f"{view.steps_per_s:.3g} steps/s" if view.steps_per_s is not None else "not known yet"]
    if view.goodput is not None:
        parts.append(f"goodput {view.goodput:.1%}")
    if view.eta is not None:
        parts.append(f"ETA {format_moment(view.eta, now)} (in {format_duration((view.eta - now).total_seconds())})")
    return ", ".join(parts)


def sessions_table(sessions: Sequence[SessionView], now: datetime, *, limit: int | None = None) -> RenderableType:
    """Return a table of the attempts; with `limit`, of only the newest ones."""
    shown = sessions if limit is None else sessions[-limit:]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for name in ("session", "try", "backend", "steps", "took"):
        table.add_column(name, no_wrap=True, justify="left" if name == "backend" else "right")
    table.add_column("state", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    for session in shown:
        why = "; ".join(part for part in (session.branch, session.reason, session.comparison) if part)
        table.add_row(
            str(session.number),
            str(session.attempt),
            session.backend,
            f"{session.start_step:,} -> {session.end_step:,}",
            format_duration(session.duration_s) if session.duration_s is not None else "-",
            Text(session.outcome or session.state, style=_OUTCOME_STYLE.get(session.outcome or "", "")),
            Text(why.partition("\n")[0] or "-"),
        )
    if len(shown) == len(sessions):
        return table
    return Group(Text(f"{len(sessions) - len(shown)} earlier attempts are not shown (--all shows them)", style="dim"), table)


def history(events: Sequence[Event], now: datetime) -> RenderableType:
    """Return a run's events, one line each."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for event in events:
        lines.add_row(format_moment(event.at, now), Text(event.text))
    return lines


def live_panel(view: StatusView, events: Sequence[Event], now: datetime) -> RenderableType:
    """Return the live display of `start`: the current state first, and short enough for a small terminal."""
    parts: list[RenderableType] = [Text(live_line(view, now), style="bold"), _steps(view), Text(_speed(view, now), style="dim")]
    if view.waiting_for and view.live is None:
        parts.append(Text(f"waiting for {view.waiting_for}"))
    if view.sessions:
        parts += ["", sessions_table(view.sessions, now, limit=SESSIONS_SHOWN_LIVE)]
    if events:
        parts += ["", history(events, now)]
    return Group(*parts)


def live_line(view: StatusView, now: datetime) -> str:
    """Return the current state in one plain line: session, step, loss, tokens/s, time left, ETA."""
    beat = view.live
    if beat is None or not view.sessions:
        return f"{view.run}: step {view.step} of {view.total_steps}, {view.waiting_for or view.state}"
    session = next((session for session in reversed(view.sessions) if session.ended_at is None), view.sessions[-1])
    return f"{view.run}: session {session.number} {_beat(beat, view.total_steps)}, ETA {format_moment(view.eta, now)}"


def _beat(beat: Heartbeat, total_steps: int) -> str:
    parts = [f"{beat.phase}, step {beat.step} of {total_steps}"]
    if beat.loss is not None:
        parts.append(f"loss {beat.loss:.4f}")
    if beat.tokens_per_s is not None:
        parts.append(f"{beat.tokens_per_s:,.0f} tokens/s")
    parts.append(f"{format_duration(max(beat.left_s, 0.0))} left in the session")
    return ", ".join(parts)


def runs_table(views: Sequence[StatusView], now: datetime) -> RenderableType:
    """Return a table with one row for each run of a home."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for name in ("run", "state", "steps", "goodput", "ETA", "waiting for"):
        table.add_column(name, overflow="fold")
    for view in views:
        table.add_row(
            view.run,
            Text(view.state, style=_STATE_STYLE.get(view.state, "")),
            f"{view.step:,} of {view.total_steps:,}",
            f"{view.goodput:.1%}" if view.goodput is not None else "-",
            format_moment(view.eta, now),
            Text(view.waiting_for or view.message or "-"),
        )
    return table


def checkpoints_tree(views: Sequence[CheckpointView], now: datetime) -> RenderableType:
    """Return the lineage as a tree, with branches indented."""
    by_id: Mapping[str, CheckpointView] = {view.id: view for view in views}
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for name in ("checkpoint", "step", "size", "state", "made", "state sha256"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("step", "size") else "left")
    head = next((view.id for view in views if view.head), None)
    for line in tree({view.id: view.parent for view in views}, [view.id for view in views], head):
        view = by_id[line.id]
        table.add_row(
            Text("  " * (line.depth - 1) + "└ " * bool(line.depth) + line.id, style="bold" if view.head else ""),
            f"{view.step:,}",
            format_bytes(view.total_bytes) if view.state != "pruned" else "-",
            Text(view.state + ", head" * view.head, style="red" if view.state == "quarantined" else ""),
            format_moment(view.created_at, now),
            view.state_sha256[:12],
        )
    return table
