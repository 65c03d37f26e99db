"""The command line: it parses, hands over, and turns errors into words and exit codes.

Imports that cost time stand inside the commands: `--help` answers at once, and no command pays for another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from orchestrator.controller import Ports
    from orchestrator.watch import Verdict
    from state.ledger import AttemptRecord, RunRecord

app = typer.Typer(
    name="gemma-orch",
    help="Train your own Gemma 3 through a chain of short sessions that equals one long session, bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C ended

RunArgument = Annotated[str | None, typer.Argument(help="The run, by name or unique prefix; the newest one when left out.")]
RunOption = Annotated[str | None, typer.Option("--run", help="The run, by name or unique prefix; the newest when left out.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the JSON contract of docs/json.md.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("gemma-orch"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def start(
    total_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the whole run; a larger number extends it.")] = None,
    config: Annotated[Path | None, typer.Option(help="A gemma-orch.toml; gemma-orch init writes one.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; made of model and corpus when left out.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where sessions run.")] = None,
    model: Annotated[str | None, typer.Option(help="tiny, 50m, 270m, 1b, 4b, 12b or 27b.")] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="A folder of JSONL, one folder per language in it.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A SentencePiece model.")] = None,
    session_limit: Annotated[str | None, typer.Option(help="How long a session may be, such as 90s or 11h30m.")] = None,
    session_steps: Annotated[int | None, typer.Option(min=1, help="Also end a session after this many steps.")] = None,
    checkpoint_every: Annotated[str | None, typer.Option(help="Time between checkpoints, such as 10m.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides the first weights and the order of the data.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background, and return at once.")] = False,
) -> None:
    """Begin a run, or go on with it: the same command again never makes a second one.

    Without a config file it trains the tiny model on the sample corpus that comes with gemma-orch.
    """
    from orchestrator import begin
    from state.duration import parse_duration_s

    said: dict[str, Any] = {
        "total_steps": total_steps,
        "name": name,
        "backend": backend,
        "model": {"size": model},
        "data": {
            "corpus": [os.path.abspath(os.path.expanduser(folder)) for folder in corpus] if corpus else None,
            "tokenizer": os.path.abspath(os.path.expanduser(tokenizer)) if tokenizer else None,
        },
        "training": {"seed": seed},
        "limits": {
            "session_limit_s": parse_duration_s(session_limit) if session_limit else None,
            "session_steps": session_steps,
            "checkpoint_every_s": parse_duration_s(checkpoint_every) if checkpoint_every else None,
        },
    }
    ports = _ports()
    run = begin.begin(ports, begin.without_none(said), config, num_cores=_num_cores(), say=_say)
    if detach:
        begin.detach(ports, run)
        _say(f"run {run} goes on in the background; it prints to {ports.home.run(run).controller_log}")
        _say("gemma-orch status --watch shows it, gemma-orch stop ends it")
        return
    _drive_to_the_end(ports, run)


@app.command()
def status(
    run: RunArgument = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and show what changes.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show every session, and every run.")] = False,
) -> None:
    """Show a run: its sessions, head checkpoint, speed, goodput, ETA, and what it is waiting for."""
    from orchestrator.watch import follow, observe_run

    ports = _ports()
    if show_all and run is None:
        views = [observe_run(ports, each) for each in ports.runs.names()]
        if as_json:
            sys.stdout.write(json.dumps([view.model_dump(mode="json") for view in views], indent=1) + "\n")
        else:
            from orchestrator.render import runs_table

            _print(runs_table(views, ports.clock.now()))
        return
    name = _the_run(ports, run)
    if as_json:
        sys.stdout.write(observe_run(ports, name).model_dump_json(indent=1) + "\n")
    elif watch:
        follow(ports, name)
    else:
        from orchestrator.render import status_panel

        view = observe_run(ports, name)
        _print(status_panel(view, ports.runs.events(name, 8), ports.clock.now(), all_sessions=show_all))
        others = len(ports.runs.names()) - 1
        if others:
            _say(f"{others} more run{'s' if others > 1 else ''} in this home: gemma-orch status --all")


@app.command()
def rerun(
    session: Annotated[int, typer.Argument(min=1, help="The session's number, as status shows it.")],
    adopt: Annotated[bool, typer.Option("--adopt", help="The run goes on from the result.")] = False,
    run: RunOption = None,
) -> None:
    """Run one session again, from the checkpoint that it started at.

    When nothing came after it, its result becomes the head. Otherwise the result is a branch that is compared with the original:
    same digest, or the first tensor that differs.
    """
    from orchestrator import begin
    from orchestrator.watch import drive
    from state.errors import ExitCode

    ports = _ports()
    name = _the_run(ports, run)
    record = ports.runs.load(name)
    head, before = record.header.head, len(record.attempts)
    begin.ask_for_rerun(ports, name, session, adopt=adopt)
    with _watching(ports, name):
        drive(ports, name, until=lambda record: record.wishes.rerun is None and record.live_attempt is None)
    new = [attempt for attempt in ports.runs.load(name).attempts[before:] if attempt.branch is not None]
    if not new:
        _say(f"session {session} was not run again: {ports.runs.events(name, 1)[-1].text}")
        raise typer.Exit(ExitCode.DATA)
    typer.echo(f"session {new[0].session} attempt {new[0].attempt} {new[0].outcome}: {new[0].reason}")
    if new[0].comparison:
        typer.echo(new[0].comparison)
    record = ports.runs.load(name)
    if record.header.head != head:
        _say(f"run {name} is at step {record.head_step} of {record.spec.total_steps} now; gemma-orch start --name {name} goes on")
    _exit_like(new[0])


@app.command()
def stop(
    run: RunArgument = None,
    now: Annotated[bool, typer.Option("--now", help="Do not save first: what is not saved is lost.")] = False,
) -> None:
    """Stop a run after its next checkpoint, which is taken at once; start goes on from there."""
    from orchestrator.watch import drive
    from state.ledger import StopWish
    from state.session import RunState

    ports = _ports()
    name = _the_run(ports, run)
    record = ports.runs.load(name)
    if record.header.state is not RunState.ACTIVE and record.live_attempt is None:
        typer.echo(f"run {name} is {record.header.state} already, at step {record.head_step}")
        return
    ports.runs.set_rerun(name, None)  # else it would begin when the session that runs now has ended
    ports.runs.set_stop(name, StopWish.NOW if now else StopWish.CHECKPOINT)
    view = drive(ports, name).view
    typer.echo(f"run {name} is {view.state}, at step {view.step}; gemma-orch start --name {name} goes on from there")


@app.command()
def tick(run: RunArgument = None) -> None:
    """Bring a run on by one decision and return: fit for cron. Every active run when none is named."""
    from orchestrator.controller import Controller
    from orchestrator.watch import observe_run
    from state.errors import ExitCode, GemmaOrchError, LeaseHeldError
    from state.session import RunState

    ports = _ports()
    names = (
        [_the_run(ports, run)]
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
            exit_code = max(exit_code, view.exit_code)
        except LeaseHeldError as error:
            _say(f"{name}: {error}")  # when every run is meant, one that is looked after is no failure
            exit_code = max(exit_code, error.exit_code if run else ExitCode.DONE)
        except GemmaOrchError as error:
            _say(f"{name}: {error}")
            exit_code = max(exit_code, error.exit_code)
        finally:
            controller.release(name)
    if not names:
        _say("no run is active; gemma-orch start --total-steps N begins one")
    raise typer.Exit(exit_code)


@app.command()
def logs(
    session: Annotated[str | None, typer.Argument(help="A session, such as 3, or one attempt of it, s003a1.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Stay, and print what is added.")] = False,
    run: RunOption = None,
) -> None:
    """Print what a session's worker printed; the newest session when none is named."""
    from orchestrator.watch import print_log

    ports = _ports()
    name = _the_run(ports, run)
    print_log(ports, name, _the_attempt(ports.runs.load(name), session), sys.stdout.write, follow=follow)


@app.command()
def checkpoints(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Show a run's checkpoints: the lineage as a tree, sizes, verified or not."""
    from orchestrator.views import checkpoint_views

    ports = _ports()
    views = checkpoint_views(ports.runs.load(_the_run(ports, run)))
    if as_json:
        sys.stdout.write(json.dumps([view.model_dump(mode="json") for view in views], indent=1) + "\n")
        return
    from orchestrator.render import checkpoints_tree

    if views:
        _print(checkpoints_tree(views, ports.clock.now()))
    else:
        _say("there is no checkpoint yet")


@app.command()
def verify(
    checkpoint: Annotated[
        str | None, typer.Argument(help="A checkpoint, by id or unique prefix; the head when left out.")
    ] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of a checkpoint again and compare all digests. Exit code 4 when it is not what it was."""
    from state.errors import CorruptCheckpointError

    ports = _ports()
    name = _the_run(ports, run)
    checkpoint_id = _the_checkpoint(ports.runs.load(name), checkpoint)
    try:
        manifest = ports.checkpoints(name).verify_tensors(checkpoint_id)
    except CorruptCheckpointError as error:
        remedy = f"gemma-orch start --name {name} puts it aside when it needs it, and goes on from the last good one"
        raise CorruptCheckpointError(checkpoint_id, error.what, expected=error.expected, remedy=remedy) from error
    if as_json:
        sys.stdout.write(manifest.model_dump_json(indent=1) + "\n")
    else:
        typer.echo(
            f"{manifest.id}: {len(manifest.files)} files, {manifest.total_bytes:,} bytes and {len(manifest.tensors)} tensors are "
            f"what they were; state sha256 {manifest.state_sha256}"
        )


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("gemma-orch.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented config file."""
    from orchestrator.config import TEMPLATE
    from state.errors import UserError
    from state.files import write_atomically

    if path.exists() and not force:
        raise UserError(f"{path} exists already", remedy="gemma-orch init --force writes over it, or name another file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"the folder {path.absolute().parent} does not exist", remedy="make it, or name another file")
    write_atomically(path.absolute(), TEMPLATE.encode())
    typer.echo(f"{path} is written; edit it, then: gemma-orch start --config {path}")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, what was found, what is missing, and the next command."""
    from orchestrator.doctor import examine, report

    findings = examine(_home(), _num_cores())
    if as_json:
        sys.stdout.write(json.dumps([finding.model_dump(mode="json") for finding in findings], indent=1) + "\n")
    else:
        _print(report(findings))
    raise typer.Exit(2 if any(not finding.ok for finding in findings) else 0)


@app.command()
def prove(
    steps: Annotated[int, typer.Option(min=2, help="Steps to train, straight and in pieces.")] = 12,
    pieces: Annotated[int, typer.Option(min=2, help="Sessions to cut them into.")] = 3,
    config: Annotated[Path | None, typer.Option(help="Prove it for the model, data and training of this config.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train K steps straight and in pieces on this machine, compare the digests, and print a certificate."""
    from orchestrator.handover import prove as hand_over_prove

    raise typer.Exit(hand_over_prove(_home(), steps, pieces, config, num_cores=_num_cores(), as_json=as_json))


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    format: Annotated[str, typer.Option(help="gemma-pytorch, hf or safetensors.")] = "hf",  # noqa: A002
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint, by id or unique prefix; the head when left out.")] = None,
    run: RunOption = None,
) -> None:
    """Write a checkpoint's weights in a form that others read.

    gemma-pytorch: a file for the official load_weights. hf: a folder for transformers' AutoModelForCausalLM. safetensors: plain.
    """
    from orchestrator.handover import export as hand_over_export

    ports = _ports()
    record = ports.runs.load(_the_run(ports, run))
    raise typer.Exit(hand_over_export(ports, record, _the_checkpoint(record, checkpoint), format, out))


@app.command()
def demo(
    total_steps: Annotated[int, typer.Option(min=40, help="Steps of the run.")] = 200,
) -> None:
    """Train the tiny model through sessions that are killed on purpose, and prove that nothing was lost.

    The last line is `identical: sha256 ...` when the weights equal those of an uninterrupted run; exit code 4 when not.
    """
    from orchestrator.demo import run_demo

    raise typer.Exit(run_demo(total_steps, say=typer.echo, environment=dict(os.environ)))


def _home() -> Any:
    from orchestrator.wiring import home_layout

    return home_layout(os.environ)


def _ports() -> Ports:
    from orchestrator.wiring import wire

    return wire(os.environ, say=_say)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(text: str) -> None:
    if text:
        typer.echo(text, err=True)


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def _the_run(ports: Ports, name: str | None) -> str:
    from state.errors import UserError
    from state.lineage import resolve

    names = ports.runs.names()
    if not names:
        raise UserError(f"there is no run in {ports.home.root}", remedy="gemma-orch start --total-steps 200 begins one")
    return resolve(name, names, "run") if name is not None else names[0]


def _the_checkpoint(record: RunRecord, prefix: str | None) -> str:
    from state.errors import UserError
    from state.ledger import CheckpointState
    from state.lineage import resolve

    if prefix is None:
        if record.header.head is None:
            raise UserError(f"run {record.name} has no checkpoint yet", remedy="gemma-orch status shows how far it is")
        return record.header.head
    known = [each.id for each in record.checkpoints.values() if each.state is CheckpointState.VERIFIED]
    return resolve(prefix, known, "checkpoint")


def _the_attempt(record: RunRecord, session: str | None) -> AttemptRecord:
    from state.errors import UserError
    from state.layout import attempt_name

    matching = [
        attempt
        for attempt in record.attempts
        if session in (None, str(attempt.session), attempt_name(attempt.session, attempt.attempt))
    ]
    if not matching:
        known = ", ".join(attempt_name(attempt.session, attempt.attempt) for attempt in record.attempts[-6:])
        raise UserError(f"run {record.name} has no session {session or 'yet'}", expected=f"one of {known}" if known else "")
    return matching[-1]


def _drive_to_the_end(ports: Ports, run: str) -> NoReturn:
    from orchestrator.watch import drive

    with _watching(ports, run):
        verdict = drive(ports, run)
    _conclude(verdict)


@contextlib.contextmanager
def _watching(ports: Ports, run: str) -> Iterator[None]:
    """Let Ctrl-C end the watching, not the session, and say how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        live = ports.runs.load(run).live_attempt
        _say("")
        if live is not None:
            _say(f"no longer watching; session {live.session} goes on by itself until its limit, and saves what it trains")
        _say(f"come back: the same command, or gemma-orch start --name {run}; look: gemma-orch status; end: gemma-orch stop")
        raise typer.Exit(INTERRUPTED) from None


def _conclude(verdict: Verdict) -> NoReturn:
    view = verdict.view
    if view.exit_code:
        _say(f"run {view.run} {view.state} at step {view.step} of {view.total_steps}: {view.message}")
        _say(f"look: gemma-orch status {view.run}, gemma-orch logs --run {view.run}; go on: the same start command")
        raise typer.Exit(view.exit_code)
    typer.echo(f"run {view.run} {view.state}: {view.message}")
    if view.head is not None:
        typer.echo(f"checkpoint {view.head}, state sha256 {view.state_sha256}")
    raise typer.Exit(0)


def _exit_like(attempt: AttemptRecord) -> NoReturn:
    from state.errors import ErrorClass, ExitCode
    from state.report import Outcome

    if attempt.outcome in (Outcome.COMPLETED, Outcome.BUDGET, Outcome.STOPPED):
        raise typer.Exit(ExitCode.DONE)
    codes = {ErrorClass.USER: ExitCode.USER, ErrorClass.DATA: ExitCode.DATA}
    raise typer.Exit(codes.get(attempt.error_class or ErrorClass.INFRA, ExitCode.TEMPORARY))


def main() -> None:
    """Run the command line."""
    from state.errors import GemmaOrchError

    try:
        app()
    except GemmaOrchError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
