"""The command that starts a run or continues it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.commands.context import Terminal, num_cores, say
from orchestrator.commands.watching import drive_to_the_end

_DATA, _SESSIONS = "Data", "Sessions"


def start(
    context: typer.Context,
    total_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the whole run; a larger number extends it.")] = None,
    config: Annotated[Path | None, typer.Option(help="Config file; gemma-orch init writes one.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: model and corpus.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where sessions run.")] = None,
    model: Annotated[str | None, typer.Option(help="tiny, 50m, 270m, 1b, 4b, 12b or 27b.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the initial weights and of the data order.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Run the controller in the background; return at once.")] = False,
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Text folder with one subfolder per language; repeatable.", rich_help_panel=_DATA),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A SentencePiece model.", rich_help_panel=_DATA)] = None,
    data: Annotated[str | None, typer.Option(help="Prepared data folder, instead of a corpus.", rich_help_panel=_DATA)] = None,
    mixing: Annotated[str | None, typer.Option(help="How languages are mixed: alpha or unimax.", rich_help_panel=_DATA)] = None,
    alpha: Annotated[
        float | None, typer.Option(help="With alpha mixing: shares are tokens ** alpha.", rich_help_panel=_DATA)
    ] = None,
    max_epochs: Annotated[
        float | None, typer.Option(help="With unimax mixing: most epochs of any language.", rich_help_panel=_DATA)
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="A language's own share, such as konkani=0.2; repeatable: languages without one are not read.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    scratch: Annotated[
        str | None, typer.Option(help="Fast local folder into which data is copied ahead.", rich_help_panel=_DATA)
    ] = None,
    scratch_size: Annotated[
        str | None, typer.Option(help="Most space used in --scratch, such as 20GB.", rich_help_panel=_DATA)
    ] = None,
    session_limit: Annotated[
        str | None, typer.Option(help="Longest time of a session, such as 90s or 11h30m.", rich_help_panel=_SESSIONS)
    ] = None,
    session_steps: Annotated[int | None, typer.Option(min=1, help="Most steps of a session.", rich_help_panel=_SESSIONS)] = None,
    checkpoint_every: Annotated[
        str | None, typer.Option(help="Time between checkpoints, such as 10m.", rich_help_panel=_SESSIONS)
    ] = None,
) -> None:
    """Start a run, or continue it: repeating the command never starts a second run.

    Without a config file it trains the tiny model on the sample corpus that comes with gemma-orch.
    """
    from orchestrator.requests.background import go_on_in_background
    from orchestrator.requests.start import begin, without_none
    from state.errors import UserError
    from state.quantities import numbers_by_language, parse_duration_s, parse_size_bytes

    if data and (corpus or tokenizer):
        raise UserError(
            "--data cannot be combined with --corpus or --tokenizer",
            expected="one of the two: text to prepare, or a prepared data folder",
        )
    said: dict[str, Any] = {
        "total_steps": total_steps,
        "name": name,
        "backend": backend,
        "model": {"size": model},
        "data": {
            "corpus": [_absolute(folder) for folder in corpus] if corpus else None,
            "tokenizer": _absolute(tokenizer) if tokenizer else None,
            "prepared": _absolute(data) if data else None,
            "mixing": mixing,
            "alpha": alpha,
            "max_epochs": max_epochs,
            "weights": numbers_by_language("--weight", weight) if weight else None,
        },
        "training": {"seed": seed},
        "reading": {
            "scratch_dir": _absolute(scratch) if scratch else None,
            "scratch_bytes": parse_size_bytes(scratch_size) if scratch_size else None,
        },
        "limits": {
            "session_limit_s": parse_duration_s(session_limit) if session_limit else None,
            "session_steps": session_steps,
            "checkpoint_every_s": parse_duration_s(checkpoint_every) if checkpoint_every else None,
        },
    }
    ports = Terminal.of(context).ports()
    run = begin(ports, without_none(said), config, num_cores=num_cores(), say=say)
    if detach:
        go_on_in_background(ports, run)
        say(f"run {run} continues in the background; log: {ports.home.run(run).controller_log}")
        say("watch it: gemma-orch status --watch; stop it: gemma-orch stop")
        return
    drive_to_the_end(ports, run)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
