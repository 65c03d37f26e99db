"""`python -m worker export`: writes a checkpoint's weights into a folder that other programs can read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from state.architecture import Architecture
from state.errors import ExitCode, UserError
from state.stores.checkpoint_store import DirectoryCheckpointStore
from worker.checkpoint.snapshot import read_weights
from worker.export.formats import Export, ExportFormat, export_checkpoint
from worker.model.weights import parameter_shapes


def main(arguments: Sequence[str]) -> int:
    """Verify a checkpoint and export it: messages on stderr, the names of the files on stdout.

    Raises:
        GemmaOrchError: the checkpoint is corrupt, or an argument does not fit it.
    """
    parser = argparse.ArgumentParser("python -m worker export", description="Write weights for other programs.")
    parser.add_argument("--checkpoint-dir", type=Path, required=True, help="the folder of one checkpoint")
    parser.add_argument("--architecture", type=Path, required=True, help="an Architecture as JSON")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the SentencePiece model")
    parser.add_argument("--format", type=ExportFormat, choices=list(ExportFormat), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make; an earlier export is replaced")
    options = parser.parse_args(arguments)
    export = run(options.checkpoint_dir, _read_architecture(options.architecture), options.tokenizer, options.out, options.format)
    for note in export.notes:
        sys.stderr.write(f"{note}\n")
    for name in export.files:
        sys.stdout.write(f"{export.out_dir / name}\n")
    return ExitCode.DONE


def run(folder: Path, architecture: Architecture, tokenizer: Path, out_dir: Path, form: ExportFormat) -> Export:
    """Export a checkpoint; every byte of it is verified while it is read."""
    folder = folder.absolute()
    store = DirectoryCheckpointStore(folder.parent, may_link=True)
    weights = read_weights(store, folder.name, parameter_shapes(architecture))
    return export_checkpoint(weights, architecture, tokenizer, out_dir, form)


def _read_architecture(path: Path) -> Architecture:
    try:
        return Architecture.from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", expected="an Architecture as JSON") from error
