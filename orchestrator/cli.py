"""The command line: registers the commands, and turns errors into messages and exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from orchestrator.commands import checkpoints, corpus, kaggle, runs, tools
from orchestrator.commands.context import INTERRUPTED, Terminal, say
from orchestrator.commands.start import start

app = typer.Typer(
    name="gemma-orch",
    help="Train your own Gemma 3 through a chain of short sessions that equals one long session, bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_USER = 2  # ExitCode.USER, for when another package hides our `state`


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("gemma-orch"))
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    context.obj = context.obj or Terminal(os.environ)


def _add(panel: str, *commands: Callable[..., None]) -> None:
    for command in commands:
        app.command(rich_help_panel=panel)(command)


_add("Runs", start, runs.status, runs.stop, runs.rerun, runs.tick, runs.session, runs.logs)
app.command(rich_help_panel="Data", context_settings=corpus.VERBATIM, add_help_option=False)(corpus.prepare)
app.add_typer(corpus.tokenizer, rich_help_panel="Data")
app.add_typer(corpus.data, rich_help_panel="Data")
_add("Checkpoints", checkpoints.checkpoints, checkpoints.verify, checkpoints.export)
_add("Kaggle", kaggle.adopt, kaggle.promote, kaggle.publish, kaggle.upload)
_add("Tools", tools.init, tools.doctor, tools.prove, tools.demo)


def main(terminal: Terminal | None = None) -> None:
    """Run the command line.

    Args:
        terminal: Where the command was typed; None: in this process's environment.
    """
    if sys.platform == "win32":  # its default for files and pipes knows a few scripts only
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8")
    try:
        from state.errors import GemmaOrchError
    except ImportError as error:
        from orchestrator.clash import foreign

        say(f"error: {foreign('state', error)}")
        sys.exit(_USER)

    try:
        app(obj=terminal)
    except GemmaOrchError as error:
        say(f"error: {error}")
        if error.retryable and not error.remedy:
            say("Next: retry the same command later")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
