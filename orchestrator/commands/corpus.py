"""Commands for text and tokens: prepare a corpus, train a tokenizer, show a run's data, add data to it.

`prepare` and `tokenizer` pass their arguments on unchanged: `python -m worker` defines those options, in one place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.commands.context import JsonOption, RunArgument, Terminal, say
from orchestrator.commands.lookup import run_named

VERBATIM: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}

tokenizer = typer.Typer(
    name="tokenizer", help="Train, measure and check SentencePiece models.", no_args_is_help=True, rich_markup_mode="rich"
)
data = typer.Typer(name="data", help="Show which documents a step reads, and add data to a run.", no_args_is_help=True)


def prepare(context: typer.Context) -> None:
    """Encode a corpus into token shards: parallel and resumable."""
    _pass_on(context, "prepare")


@tokenizer.command("train", context_settings=VERBATIM, add_help_option=False)
def train_tokenizer(context: typer.Context) -> None:
    """Train a model on a corpus, balanced between its languages."""
    _pass_on(context, "tokenizer", "train")


@tokenizer.command("report", context_settings=VERBATIM, add_help_option=False)
def report_tokenizer(context: typer.Context) -> None:
    """Measure per language how well a model tokenizes a corpus."""
    _pass_on(context, "tokenizer", "report")


@tokenizer.command("check", context_settings=VERBATIM, add_help_option=False)
def check_tokenizer(context: typer.Context) -> None:
    """Check whether a model can be used, and say what to change if not."""
    _pass_on(context, "tokenizer", "check")


@data.command("show")
def show_data(
    context: typer.Context,
    run: RunArgument = None,
    step: Annotated[int | None, typer.Option(help="Step number, counted from 1 as in status and the metrics.")] = None,
    sequence: Annotated[int | None, typer.Option(help="Show only this sequence of the step, counted from 1.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Show the text as well.")] = False,
    folder: Annotated[Path | None, typer.Option("--data", help="Prepared data folder to show instead of a run's data.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show exactly which documents a step reads; without --step, each language's tokens, share and epochs."""
    from orchestrator.worker_process.verbs import pass_on, show_data
    from state.errors import UserError

    arguments = [
        *(["--step", str(step)] if step is not None else []),
        *(["--sequence", str(sequence)] if sequence is not None else []),
        *(["--decode"] if decode else []),
        *(["--json"] if as_json else []),
    ]
    if folder is None:
        ports = Terminal.of(context).ports()
        raise typer.Exit(show_data(ports, ports.runs.load(run_named(ports, run)), arguments))
    if run is not None or step is not None:
        raise UserError(
            f"--data cannot be combined with {'a run' if run is not None else '--step'}",
            expected="--data alone: only a run decides which documents a step reads",
        )
    raise typer.Exit(pass_on("data", ["show", "--data", str(folder), *arguments]))


@data.command("add")
def add_data(
    context: typer.Context,
    run: RunArgument = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Text folder with one subfolder per language; repeatable: name all that the run shall read."),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--data", help="Prepared data folder, instead of --corpus.")] = None,
    from_step: Annotated[
        int | None, typer.Option(min=1, help="First step that reads the new data; default: the next step.")
    ] = None,
) -> None:
    """Switch a run to other data from a given step; steps already trained do not change."""
    from orchestrator.requests.add_data import add_data

    ports = Terminal.of(context).ports()
    add_data(ports, run_named(ports, run), corpus=corpus or (), prepared=folder, from_step=from_step, say=say)


def _pass_on(context: typer.Context, verb: str, *first: str) -> None:
    from orchestrator.worker_process.verbs import pass_on

    raise typer.Exit(pass_on(verb, [*first, *context.args]))
