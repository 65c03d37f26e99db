"""Commands about gemma-orch itself: write a config file, check the installation, prove resumption, run the demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.context import JsonOption, Terminal, ask, num_cores, say, show, write_json


def init(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("gemma-orch.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    backend: Annotated[str, typer.Option(help="Where sessions run: local or kaggle.")] = "local",
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    owner: Annotated[str | None, typer.Option(help="kaggle: your user name; default: that of the credentials.")] = None,
) -> None:
    """Write a commented config file.

    With --backend kaggle it contains the run's and the owner's names on the account; on a terminal it asks for them.
    """
    from orchestrator.ports import ConfigWishes
    from state.errors import UserError
    from state.files import write_atomically

    terminal = Terminal.of(context)
    kind = terminal.kind(backend)
    if path.exists() and not force:
        raise UserError(f"{path} already exists", remedy="overwrite it: gemma-orch init --force; or name another file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"folder is missing: {path.absolute().parent}", remedy="make it, or name another file")
    wishes = ConfigWishes(name, owner, ask if sys.stdin.isatty() else None)
    write_atomically(path.absolute(), kind.config_file(terminal.environment, wishes, say).encode())
    following = ", ".join(filter(None, (kind.before_start, f"gemma-orch start --config {path}")))
    typer.echo(f"wrote {path}; edit it, then: {following}")


def doctor(
    context: typer.Context,
    backend: Annotated[str, typer.Option(help="Also check what this backend needs: local or kaggle.")] = "local",
    live_check: Annotated[
        bool,
        typer.Option("--live-check", help="kaggle: measure Kaggle's behaviour with two short CPU kernels."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the installation; show what is missing and the next command."""
    from orchestrator.doctor import examine, report
    from state.errors import UserError

    terminal = Terminal.of(context)
    kind = terminal.kind(backend)
    if live_check and not kind.has_live_check:
        raise UserError(
            f"--live-check is invalid: backend {backend} has no live check",
            expected="a backend with a live check, such as kaggle",
            remedy="leave --live-check out, or name another --backend",
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
    steps: Annotated[int, typer.Option(min=2, help="Steps to train, in one session and in several.")] = 12,
    pieces: Annotated[int, typer.Option(min=2, help="Number of sessions.")] = 3,
    config: Annotated[Path | None, typer.Option(help="Prove it for the model, data and training of this config file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the same steps in one session and in several, compare the digests, and print a certificate."""
    from orchestrator.worker_process.verbs import prove as hand_over_prove

    raise typer.Exit(hand_over_prove(Terminal.of(context).home(), steps, pieces, config, num_cores=num_cores(), as_json=as_json))


def demo(
    context: typer.Context,
    total_steps: Annotated[int, typer.Option(min=40, help="Steps of the run.")] = 200,
) -> None:
    """Train the tiny model while killing its sessions and controller, and prove that the result is the same.

    The last line is `identical: sha256 ...` if the weights equal those of an uninterrupted run; exit code 4 if not.
    """
    from orchestrator.demo import run_demo

    raise typer.Exit(run_demo(total_steps, say=typer.echo, environment=dict(Terminal.of(context).environment)))
