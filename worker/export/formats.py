"""Exports a checkpoint's weights in the formats of other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

from state import files
from state.architecture import Architecture
from state.errors import DataError, UserError
from worker.model.weights import gemma_pytorch_config, parameter_shapes, to_transformers, transformers_config
from worker.tokenizer.hugging_face import tokenizer_json

MARKER = "gemma_orch_export.json"
"""A folder with this file was written by an export, and may be replaced by one."""


class ExportFormat(StrEnum):
    """The format of an export, by the program that reads it."""

    GEMMA_PYTORCH = "gemma-pytorch"
    """The official implementation: `model.load_weights("model.ckpt")`."""
    HF = "hf"
    """transformers: `AutoModelForCausalLM.from_pretrained(folder)`, and the tokenizer likewise."""
    SAFETENSORS = "safetensors"
    """Other programs: weights under the official names, and the architecture as JSON."""


@dataclass(frozen=True)
class Export:
    """The result of an export."""

    out_dir: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]
    """Warnings for the user, such as settings that the reading program ignores."""


def export_checkpoint(
    weights: Mapping[str, Tensor], architecture: Architecture, tokenizer: Path, out_dir: Path, form: ExportFormat
) -> Export:
    """Write weights, configuration and tokenizer into a folder, which appears complete or not at all.

    Args:
        weights: Every parameter under our name, on any device.
        architecture: The architecture of the weights.
        tokenizer: The SentencePiece model that the weights were trained with.
        out_dir: The folder to make; an earlier export there is replaced.
        form: The format.

    Raises:
        UserError: the folder holds other files, or the tokenizer or the architecture does not fit the format.
        DataError: the weights do not match the architecture.
    """
    _require_replaceable(out_dir)
    _require_weights_of(architecture, weights)
    pieces = _load_tokenizer(tokenizer, architecture)
    _require_readable_by_peer(architecture, form)
    plain = {name: weights[name].detach().cpu().contiguous() for name in parameter_shapes(architecture)}
    staged = files.temporary_beside(out_dir)
    staged.mkdir(parents=True)
    try:
        _WRITERS[form](staged, plain, architecture, tokenizer, pieces)
        _write_json(staged / MARKER, {"format": form.value, "architecture": architecture.model_dump(mode="json")})
        mode = (staged / MARKER).stat().st_mode  # according to the umask; safetensors makes files that only their owner can read
        for path in sorted(staged.iterdir()):
            path.chmod(mode)
            files.fsync_file(path)
        files.fsync_dir(staged)
        _put_in_place(staged, out_dir)
    finally:
        files.remove_tree(staged)
    names = tuple(sorted(path.name for path in out_dir.iterdir()))
    return Export(out_dir=out_dir, files=names, notes=_notes(architecture, form))


def _write_gemma_pytorch(folder: Path, weights: dict[str, Tensor], architecture: Architecture, tokenizer: Path, _: Any) -> None:
    # Without the rope tables: the official loader accepts that they are missing, but not a table of another length.
    torch.save({"model_state_dict": weights}, folder / "model.ckpt")
    _write_json(folder / "config.json", gemma_pytorch_config(architecture))
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())


def _write_hf(
    folder: Path,
    weights: dict[str, Tensor],
    architecture: Architecture,
    tokenizer: Path,
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    # Clone, because query, key and value rows share one storage, which safetensors refuses.
    renamed = {name: tensor.clone() for name, tensor in to_transformers(weights, architecture).items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    special_ids = {
        f"{role}_token_id": token_id if token_id >= 0 else None
        for role, token_id in (("bos", pieces.bos_id()), ("eos", pieces.eos_id()), ("pad", pieces.pad_id()))
    }
    _write_json(folder / "config.json", transformers_config(architecture) | special_ids)
    _write_json(folder / "generation_config.json", special_ids)
    special_pieces = {
        f"{role}_token": pieces.id_to_piece(token_id)
        for role, token_id in (
            ("bos", pieces.bos_id()),
            ("eos", pieces.eos_id()),
            ("pad", pieces.pad_id()),
            ("unk", pieces.unk_id()),
        )
        if token_id >= 0
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            # This class uses tokenizer.json unchanged; Gemma's own class would rebuild it with Gemma's normalisation.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": architecture.max_position,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            **special_pieces,
        },
    )
    _write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())


def _write_safetensors(folder: Path, weights: dict[str, Tensor], architecture: Architecture, tokenizer: Path, _: Any) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "architecture.json").write_bytes(architecture.to_json())
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())


_WRITERS: dict[ExportFormat, Callable[..., None]] = {
    ExportFormat.GEMMA_PYTORCH: _write_gemma_pytorch,
    ExportFormat.HF: _write_hf,
    ExportFormat.SAFETENSORS: _write_safetensors,
}


def _require_replaceable(out_dir: Path) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file", expected="a folder that is new, empty or an earlier export")
    if any(out_dir.iterdir()) and not (out_dir / MARKER).exists():
        raise UserError(
            f"{out_dir} holds files that no export wrote",
            expected="a folder that is new, empty or an earlier export",
            remedy="give another folder with --out",
        )


def _require_weights_of(architecture: Architecture, weights: Mapping[str, Tensor]) -> None:
    expected = parameter_shapes(architecture)
    if missing := [name for name in expected if name not in weights]:
        raise DataError(f"{len(missing)} of {len(expected)} weights are missing, {missing[0]!r} for one")
    if unknown := [name for name in weights if name not in expected]:
        raise DataError(f"{len(unknown)} weights belong to no part of the model, {unknown[0]!r} for one")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise DataError(f"the weight {name!r} has the shape {tuple(weights[name].shape)}", expected=f"{shape}")


def _load_tokenizer(path: Path, architecture: Architecture) -> sentencepiece.SentencePieceProcessor:
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a SentencePiece model: {error}") from error
    if pieces.get_piece_size() != architecture.vocab_size:
        raise UserError(
            f"the tokenizer {path} has {pieces.get_piece_size()} pieces, the weights have {architecture.vocab_size}",
            expected="the tokenizer that the weights were trained with",
        )
    return pieces


def _require_readable_by_peer(architecture: Architecture, form: ExportFormat) -> None:
    if form is not ExportFormat.SAFETENSORS and architecture.hidden_size % architecture.num_heads:
        raise UserError(
            f"hidden_size {architecture.hidden_size} is not a multiple of num_heads {architecture.num_heads}, "
            f"which the readers of {form.value!r} insist on",
            remedy="export with --format safetensors",
        )


def _notes(architecture: Architecture, form: ExportFormat) -> tuple[str, ...]:
    if form is ExportFormat.GEMMA_PYTORCH and architecture.rope_global_scaling != 1.0:
        return (
            f"The official text-only class ignores rope_scaling_factor {architecture.rope_global_scaling:g} "
            "(seen at 014acb7): with it, global layers compute something else than they were trained for.",
        )
    return ()


def _put_in_place(staged: Path, out_dir: Path) -> None:
    if not out_dir.exists():
        files.rename(staged, out_dir)
        return
    replaced = files.temporary_beside(out_dir)
    try:
        files.rename(out_dir, replaced)
        files.rename(staged, out_dir)
    finally:  # also after Ctrl-C between the two renames: one complete export remains, and no temporary folder
        if not out_dir.exists():
            files.rename(replaced, out_dir)
        files.remove_tree(replaced)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
