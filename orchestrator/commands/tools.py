"""Commands about gemma-orch itself: config file, installation, proofs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.context import JsonOption, Terminal, ask, num_cores, say, show, write_json


def init(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("gemma-orch.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    backend: Annotated[str, typer.Option(help="Where sessions shall run: local or kaggle.")] = "local",
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    owner: Annotated[str | None, typer.Option(help="kaggle: your user name; that of the credentials when left out.")] = None,
) -> None:
    """Write a commented config file.

    With --backend kaggle it has the names that the run will have on the account, which are asked for on a terminal.
    """
    from orchestrator.ports import ConfigWishes
    from state.errors import UserError
    from state.files import write_atomically

    terminal = Terminal.of(context)
    kind = terminal.kind(backend)
    if path.exists() and not force:
        raise UserError(f"{path} exists already", remedy="gemma-orch init --force writes over it, or name another file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"the folder {path.absolute().parent} does not exist", remedy="make it, or name another file")
    wishes = ConfigWishes(name, owner, ask if sys.stdin.isatty() else None)
    write_atomically(path.absolute(), kind.config_file(terminal.environment, wishes, say).encode())
    following = ", ".join(filter(None, (kind.before_start, f"gemma-orch start --config {path}")))
    typer.echo(f"{path} is written; edit it, then: {following}")


def doctor(
    context: typer.Context,
    backend: Annotated[str, typer.Option(help="Also look at what this backend needs: local or kaggle.")] = "local",
    live_check: Annotated[
        bool,
        typer.Option("--live-check", help="kaggle: run two short CPU kernels that measure what only Kaggle itself can show."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, what was found, what is missing, and the next command."""
    from orchestrator.doctor import examine, report
    from state.errors import UserError

    terminal = Terminal.of(context)
    kind = terminal.kind(backend)
    if live_check and not kind.has_live_check:
        raise UserError(
            f"--live-check is given, and the backend {backend} has nothing to measure",
            remedy="leave --live-check out, or name with --backend a platform that has, such as kaggle",
        )
    findings = examine(terminal.home(), num_cores())
    findings += kind.examine(terminal.environment, terminal.home(), say, live_check=live_check)
    if as_json:
        write_json(findings)
    else:
        show(report(findings, kind.after_doctor))
    raise typer.Exit(2 if any(not finding.ok for finding in findings) else 0)


def prove(
    context: typer.Context,
    steps: Annotated[int, typer.Option(min=2, help="Steps to train, straight and in pieces.")] = 12,
    pieces: Annotated[int, typer.Option(min=2, help="Sessions to cut them into.")] = 3,
    config: Annotated[Path | None, typer.Option(help="Prove it for the model, data and training of this config.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train K steps straight and in pieces on this machine, compare the digests, and print a certificate."""
    from orchestrator.worker_process.verbs import prove as hand_over_prove

    raise typer.Exit(hand_over_prove(Terminal.of(context).home(), steps, pieces, config, num_cores=num_cores(), as_json=as_json))


def demo(
    context: typer.Context,
    total_steps: Annotated[int, typer.Option(min=40, help="Steps of the run.")] = 200,
) -> None:
    """Train the tiny model through sessions that are killed on purpose, and prove that nothing was lost.

    The last line is `identical: sha256 ...` when the weights equal those of an uninterrupted run; exit code 4 when not.
    """
    from orchestrator.demo import run_demo

    raise typer.Exit(run_demo(total_steps, say=typer.echo, environment=dict(Terminal.of(context).environment)))
