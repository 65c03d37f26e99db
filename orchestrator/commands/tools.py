"""Commands about gemma-orch itself: config file, installation, proofs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.terminal import JsonOption, Terminal, num_cores, show, write_json


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


def doctor(context: typer.Context, as_json: JsonOption = False) -> None:
    """Say what is installed, what was found, what is missing, and the next command."""
    from orchestrator.doctor import examine, report

    findings = examine(Terminal.of(context).home(), num_cores())
    if as_json:
        write_json(findings)
    else:
        show(report(findings))
    raise typer.Exit(2 if any(not finding.ok for finding in findings) else 0)


def prove(
    context: typer.Context,
    steps: Annotated[int, typer.Option(min=2, help="Steps to train, straight and in pieces.")] = 12,
    pieces: Annotated[int, typer.Option(min=2, help="Sessions to cut them into.")] = 3,
    config: Annotated[Path | None, typer.Option(help="Prove it for the model, data and training of this config.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train K steps straight and in pieces on this machine, compare the digests, and print a certificate."""
    from orchestrator.handover import prove as hand_over_prove

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
