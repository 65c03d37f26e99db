"""Commands for existing runs: status, rerun, stop, tick, session, logs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.context import JsonOption, RunArgument, RunOption, Terminal, say, show, write_json
from orchestrator.commands.lookup import attempt_named, run_named
from orchestrator.commands.watching import advice_on, exit_like, watching


def status(
    context: typer.Context,
    run: RunArgument = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing the run until it is over.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show every session, and every run.")] = False,
) -> None:
    """Show a run: sessions, head checkpoint, speed, goodput, ETA, and what it waits for."""
    from orchestrator.monitoring.status import observe_run
    from orchestrator.monitoring.watch import follow

    ports = Terminal.of(context).ports()
    if show_all and run is None:
        views = [observe_run(ports, each) for each in ports.runs.names()]
        if as_json:
            write_json(views)
        else:
            from orchestrator.monitoring.render import runs_table

            show(runs_table(views, ports.clock.now()))
        return
    name = run_named(ports, run)
    if as_json:
        write_json(observe_run(ports, name))
    elif watch:
        follow(ports, name)
    else:
        from orchestrator.monitoring.render import status_panel

        view = observe_run(ports, name)
        show(status_panel(view, ports.runs.events(name, 8), ports.clock.now(), all_sessions=show_all))
        others = len(ports.runs.names()) - 1
        if others:
            say(f"{others} more run{'s' if others > 1 else ''} in this home: gemma-orch status --all")


def rerun(
    context: typer.Context,
    session: Annotated[int, typer.Argument(min=1, help="The session's number, as status shows it.")],
    make_head: Annotated[
        bool, typer.Option("--make-head", help="Make the result the head, even if later sessions exist.")
    ] = False,
    adopt: Annotated[bool, typer.Option("--adopt", hidden=True, help="Earlier name of --make-head.")] = False,
    run: RunOption = None,
) -> None:
    """Run one session again from its start checkpoint.

    If it was the last session, the result becomes the head. Otherwise the result is a branch, compared with the original: the
    same digest, or the first tensor that differs.
    """
    from orchestrator.monitoring.watch import drive
    from orchestrator.requests.rerun import ask_for_rerun
    from state.errors import ExitCode

    ports = Terminal.of(context).ports()
    name = run_named(ports, run)
    record = ports.runs.load(name)
    head, before = record.header.head, len(record.attempts)
    ask_for_rerun(ports, name, session, adopt=make_head or adopt)
    with watching(ports, name):
        drive(ports, name, until=lambda record: record.wishes.rerun is None and record.live_attempt is None)
    new = [attempt for attempt in ports.runs.load(name).attempts[before:] if attempt.branch is not None]
    if not new:
        say(f"session {session} was not run again: {ports.runs.events(name, 1)[-1].text}")
        raise typer.Exit(ExitCode.DATA)
    typer.echo(f"session {new[0].session} attempt {new[0].attempt} {new[0].outcome}: {new[0].reason}")
    if new[0].comparison:
        typer.echo(new[0].comparison)
    record = ports.runs.load(name)
    if record.header.head != head:
        say(f"run {name} is at step {record.head_step} of {record.spec.total_steps}; continue: gemma-orch start --name {name}")
    exit_like(new[0])


def stop(
    context: typer.Context,
    run: RunArgument = None,
    now: Annotated[bool, typer.Option("--now", help="Kill the session: unsaved steps are lost.")] = False,
) -> None:
    """Save a checkpoint at the next step and stop the run; start continues from it."""
    from orchestrator.controller.training_data import check_order
    from orchestrator.monitoring.watch import drive
    from state.ledger import StopWish
    from state.session import RunState

    ports = Terminal.of(context).ports()
    name = run_named(ports, run)
    record = ports.runs.load(name)
    if record.header.state is not RunState.ACTIVE and record.live_attempt is None:
        typer.echo(f"run {name} is already {record.header.state}, at step {record.head_step}")
        say(advice_on(ports, name))
        return
    check_order(record)
    ports.runs.set_rerun(name, None)  # a pending rerun would otherwise start when the live session ends
    ports.runs.set_stop(name, StopWish.NOW if now else StopWish.CHECKPOINT)
    if now and record.live_attempt is not None:
        say(ports.backend(record.live_attempt.backend, name).kill_note)
    view = drive(ports, name, patient=not now).view
    typer.echo(f"run {name} is {view.state}, at step {view.step}; gemma-orch start --name {name} continues from there")
    say(advice_on(ports, name))


def tick(context: typer.Context, run: RunArgument = None) -> None:
    """Advance a run by one decision and return, for cron; without a name, every active run."""
    from orchestrator.controller.tick import Controller
    from orchestrator.monitoring.status import observe_run
    from state.errors import ExitCode, GemmaOrchError, LeaseHeldError
    from state.session import RunState

    ports = Terminal.of(context).ports()
    names = (
        [run_named(ports, run)]
        if run
        else [name for name in ports.runs.names() if ports.runs.load(name).header.state is RunState.ACTIVE]
    )
    exit_code = 0
    for name in names:
        controller = Controller(ports)
        try:
            controller.tick(name)
            view = observe_run(ports, name)
            typer.echo(f"{name}: step {view.step} of {view.total_steps}, {view.waiting_for or view.state}")
            if view.state is not RunState.ACTIVE:
                say(advice_on(ports, name))
            exit_code = max(exit_code, view.exit_code)
        except LeaseHeldError as error:
            say(f"{name}: {error}")  # a tick of all runs skips those that another controller drives: no failure
            exit_code = max(exit_code, error.exit_code if run else ExitCode.DONE)
        except GemmaOrchError as error:
            say(f"{name}: {error}")
            exit_code = max(exit_code, error.exit_code)
        finally:
            controller.release(name)
    if not names:
        say("no run is active; gemma-orch start --total-steps N starts one")
    raise typer.Exit(exit_code)


def session(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="An attempt's session.json, below runs/ in your home of gemma-orch.")
    ],
) -> None:
    """Run one session by hand, without a controller. Repeated, it resumes, or reports that the session is done.

    Output and exit code are the worker's. Ctrl-C saves at the next step and ends.
    """
    from orchestrator.worker_process.verbs import run_session

    raise typer.Exit(run_session(path, Terminal.of(context).home()))


def logs(
    context: typer.Context,
    session: Annotated[str | None, typer.Argument(help="A session, such as 3, or one of its attempts, such as s003a1.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing new lines.")] = False,
    run: RunOption = None,
) -> None:
    """Print the output of a session's worker; default: the newest session."""
    from orchestrator.monitoring.watch import print_log

    ports = Terminal.of(context).ports()
    name = run_named(ports, run)
    attempt, written = attempt_named(ports.runs.load(name), session), 0

    def write(text: str) -> None:
        nonlocal written
        written += sys.stdout.write(text)

    print_log(ports, name, attempt, write, follow=follow)
    if not written:
        say(f"session {attempt.session} attempt {attempt.attempt} of {name} has no output to show")
