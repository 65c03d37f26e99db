"""Commands for checkpoints: list, verify, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.context import JsonOption, RunArgument, RunOption, Terminal, say, show, write_json
from orchestrator.commands.lookup import checkpoint_named, run_named


def checkpoints(context: typer.Context, run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Show a run's checkpoints: the lineage as a tree, sizes, verified or not."""
    from orchestrator.monitoring.views import checkpoint_views

    ports = Terminal.of(context).ports()
    views = checkpoint_views(ports.runs.load(run_named(ports, run)))
    if as_json:
        write_json(views)
        return
    from orchestrator.monitoring.render import checkpoints_tree

    if views:
        show(checkpoints_tree(views, ports.clock.now()))
    else:
        say("no checkpoint yet")


def verify(
    context: typer.Context,
    checkpoint: Annotated[str | None, typer.Argument(help="Checkpoint id or unique prefix; default: the head.")] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of a checkpoint and verify all digests. Exit code 4 if the checkpoint is corrupt."""
    from state.errors import CorruptCheckpointError

    ports = Terminal.of(context).ports()
    name = run_named(ports, run)
    checkpoint_id = checkpoint_named(ports.runs.load(name), checkpoint)
    try:
        manifest = ports.checkpoints(name).verify_tensors(checkpoint_id)
    except CorruptCheckpointError as error:
        remedy = f"gemma-orch start --name {name} quarantines it when it needs it, and falls back to the last verified one"
        raise CorruptCheckpointError(checkpoint_id, error.what, expected=error.expected, remedy=remedy) from error
    if as_json:
        write_json(manifest)
    else:
        typer.echo(
            f"{manifest.id} is intact: {len(manifest.files)} files, {manifest.total_bytes:,} bytes, {len(manifest.tensors)} "
            f"tensors; state sha256 {manifest.state_sha256}"
        )


def export(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    format: Annotated[str, typer.Option(help="gemma-pytorch, hf or safetensors.")] = "hf",  # noqa: A002
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint id or unique prefix; default: the head.")] = None,
    run: RunOption = None,
) -> None:
    """Export a checkpoint's weights for other software.

    gemma-pytorch: a file for the official load_weights. hf: a folder for transformers' AutoModelForCausalLM. safetensors: plain.
    """
    from orchestrator.worker_process.verbs import export as hand_over_export

    ports = Terminal.of(context).ports()
    record = ports.runs.load(run_named(ports, run))
    raise typer.Exit(hand_over_export(ports, record, checkpoint_named(record, checkpoint), format, out))
