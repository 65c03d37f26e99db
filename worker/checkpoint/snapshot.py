"""Copies the training state into the image of a safetensors file, and restores it from such files.

Names of tensors: `model.<parameter>`, `optimizer.exp_avg.<parameter>`, `optimizer.exp_avg_sq.<parameter>`.

Checkpoints are safetensors files that `torch.distributed.checkpoint` can read, sharded or whole, so that a state can move
to another number of ranks. We do not write with it, because its writer first serialises all tensors into one bytes object.
Measured with the 566 MB state of the 50 M-parameter configuration on 2 cores (torch 2.13): its writer took 2.3-4.6 s and
another 600 MB of memory; writing the image below took 0.4 s and no more memory.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from state.errors import DataError
from state.files import DigestedFile
from state.manifest import FileEntry
from state.stores.checkpoint_store import DirectoryCheckpointStore
from state.tensor_files import TensorPiece, read_header
from worker.train.optim import AdamW
from worker.train.trainer import TrainableModel

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_MODEL = "model."
_MOMENTS = ("optimizer.exp_avg.", "optimizer.exp_avg_sq.")
_STAGING_BYTES = 16 * 1024 * 1024


def training_state(model: TrainableModel, optimizer: AdamW) -> dict[str, Tensor]:
    """Return every tensor of the state by name, in name order: the live tensors, not copies."""
    tensors = {_MODEL + name: parameter.detach() for name, parameter in model.named_parameters()}
    for kind, moments in zip(_MOMENTS, (optimizer.exp_avg, optimizer.exp_avg_sq), strict=True):
        tensors |= {kind + name: moment for name, moment in moments.items()}
    return dict(sorted(tensors.items()))


@dataclass(frozen=True)
class ImagePart:
    """One tensor's place in the image, in bytes from its begin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class StateImage:
    """A safetensors file in memory. It is made once; each checkpoint copies the state into it.

    The training waits for this copy only.

    Args:
        tensors: The state to copy; shapes must not change.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        header, self.parts = _layout(tensors)
        self.size_bytes = self.parts[-1].end
        self.buffer = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.buffer.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(self.buffer, dtype=np.uint8)
        whole.fill(0)  # touches every page now; otherwise the first copy would wait for the system to provide them
        whole[: len(header)] = np.frombuffer(header, dtype=np.uint8)
        self._sources = tuple(tensors.values())
        image = torch.from_numpy(whole)
        self._copies = tuple(
            image[part.begin : part.end].view(source.dtype).view(source.shape)
            for part, source in zip(self.parts, self._sources, strict=True)
        )

    def take(self) -> None:
        """Copy the current state into the image."""
        for copy, source in zip(self._copies, self._sources, strict=True):
            if source.device.type == "cpu":
                # One thread copies as fast as the memory allows. Torch's copy uses all threads, and each of them waits for
                # a core for each tensor: measured on a busy machine, 8 ms a tensor against 0.2 ms.
                np.copyto(copy.numpy(), source.numpy())
            else:
                copy.copy_(source, non_blocking=True)
        if self._sources[0].device.type == "cuda":
            torch.cuda.synchronize()


def restore_state(
    folder: Path, file_names: Sequence[str], tensors: Mapping[str, Tensor], *, others_allowed: bool = False
) -> tuple[FileEntry, ...]:
    """Read a checkpoint's tensors into the live ones in one pass; any number of ranks may have written them.

    Reads no other file of the folder. Every byte is hashed on its way into the tensors, so that the returned digests are
    those of the restored bytes. The caller must compare them with the manifest (`DirectoryCheckpointStore.read` does);
    until then, the tensors' values cannot be trusted.

    Args:
        folder: The checkpoint's folder.
        file_names: Its safetensors files.
        tensors: The tensors to fill, by name.
        others_allowed: Whether the checkpoint may hold further tensors.

    Returns:
        Size and digest of each file as read, in the given order.

    Raises:
        DataError: a tensor is missing, incomplete, has another shape or dtype, or is unknown.
    """
    restoring = _Restoring(folder.name, tensors)
    entries = []
    for name in file_names:
        with DigestedFile(folder / name) as file:
            for piece in read_header(file.read, name):
                restoring.take(piece, file)
            sha256 = file.sha256()
            entries.append(FileEntry(name=name, size_bytes=file.size_bytes, sha256=sha256))
    restoring.check_whole(others_allowed=others_allowed)
    return tuple(entries)


def read_weights(store: DirectoryCheckpointStore, checkpoint_id: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return only a checkpoint's weights, by parameter name, on the CPU in fp32; every byte of the checkpoint is verified.

    Raises:
        CorruptCheckpointError: a file does not match the manifest.
        DataError: a weight is missing or has another shape.
    """
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    state = {_MODEL + name: weight for name, weight in weights.items()}
    store.read(
        checkpoint_id,
        lambda folder, manifest: restore_state(folder, manifest.file_names, state, others_allowed=True),
    )
    return weights


class _Restoring:
    """Fills live tensors from the files of a checkpoint, piece by piece, and checks that nothing is missing."""

    def __init__(self, checkpoint: str, tensors: Mapping[str, Tensor]) -> None:
        self._checkpoint = checkpoint
        self._tensors = tensors
        self._taken: dict[str, list[TensorPiece]] = {}

    def take(self, piece: TensorPiece, file: DigestedFile) -> None:
        """Read a piece into its place. Pieces must come in the order of the file."""
        if not file.size_bytes <= piece.begin <= piece.end:
            raise DataError(
                f"tensor {piece.tensor} of checkpoint {self._checkpoint} has invalid bytes: {piece.begin} to {piece.end}",
                expected="bytes that no other tensor shares",
            )
        file.skip(piece.begin - file.size_bytes)
        tensor = self._tensors.get(piece.tensor)
        if tensor is None:
            file.skip(piece.end - piece.begin)
        else:
            self._check_fits(piece, tensor)
            block = tensor[tuple(slice(at, at + length) for at, length in zip(piece.offset, piece.shape, strict=True))]
            _read_tensor(file, block)
        self._taken.setdefault(piece.tensor, []).append(piece)

    def check_whole(self, *, others_allowed: bool) -> None:
        """Check that every tensor was filled completely and, unless others are allowed, that no other tensor was found."""
        wanted, found = self._tensors.keys(), self._taken.keys()
        if lacking := wanted - found:
            raise DataError(f"{len(lacking)} tensors are missing in checkpoint {self._checkpoint}: {min(lacking)} is the first")
        if not others_allowed and (unknown := found - wanted):
            raise DataError(f"{len(unknown)} tensors of checkpoint {self._checkpoint} are unknown: {min(unknown)} is the first")
        for name, tensor in self._tensors.items():
            numbers = sum(prod(piece.shape) for piece in self._taken[name])  # no two pieces overlap
            if numbers != tensor.numel():
                raise DataError(
                    f"the files of checkpoint {self._checkpoint} hold {numbers} numbers of tensor {name}",
                    expected=f"{tensor.numel()}, in the shape {tuple(tensor.shape)}",
                )

    def _check_fits(self, piece: TensorPiece, tensor: Tensor) -> None:
        dtype, shape = _DTYPES[tensor.dtype], tuple(tensor.shape)
        where = f"tensor {piece.tensor} of checkpoint {self._checkpoint}"
        if piece.dtype != dtype or len(piece.shape) != len(shape) or len(piece.offset) != len(shape):
            raise DataError(f"{where} is {piece.dtype} {piece.shape}", expected=f"{dtype} {shape}")
        if any(at + length > whole for at, length, whole in zip(piece.offset, piece.shape, shape, strict=True)):
            raise DataError(
                f"a piece of {where} is at {piece.offset} and has the shape {piece.shape}", expected=f"within {shape}"
            )
        if piece.end - piece.begin != prod(piece.shape) * tensor.element_size():
            raise DataError(f"{where} has {piece.end - piece.begin} bytes", expected=f"those of {dtype} {piece.shape}")
        if any(_overlap(piece, other) for other in self._taken.get(piece.tensor, ())):
            raise DataError(f"two pieces of {where} overlap, one of them at {piece.offset}")


def _overlap(one: TensorPiece, other: TensorPiece) -> bool:
    """Return whether two pieces of a tensor share an element; an empty piece shares none."""
    sides = zip(one.offset, one.shape, other.offset, other.shape, strict=True)
    return all(max(at, its_at) < min(at + length, its_at + its_length) for at, length, its_at, its_length in sides)


def _read_tensor(file: DigestedFile, target: Tensor) -> None:
    """Fill a tensor, on any device, with the next bytes of a file."""
    if not target.numel():
        return
    if not target.is_contiguous():  # the block is narrower than its tensor: read it whole, then copy it into place
        block = torch.empty(target.shape, dtype=target.dtype)
        _read_tensor(file, block)
        target.copy_(block)
        return
    raw = target.view(-1).view(torch.uint8)
    if target.device.type == "cpu":
        file.read_into(raw.numpy().data)
        return
    staging = torch.empty(min(len(raw), _STAGING_BYTES), dtype=torch.uint8, pin_memory=target.is_cuda)
    for begin in range(0, len(raw), _STAGING_BYTES):
        part = raw[begin : begin + _STAGING_BYTES]
        staged = staging[: len(part)]
        file.read_into(staged.numpy().data)
        part.copy_(staged)


def _layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, tuple[ImagePart, ...]]:
    """Return the file's header, including its length prefix, and the place of each tensor after it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % mmap.PAGESIZE)  # the tensors begin at a page, so that copies and reads are aligned
    start = 8 + len(text)
    parts = []
    offset = start
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        parts.append(ImagePart(name, _DTYPES[tensor.dtype], tuple(tensor.shape), offset, end))
        offset = end
    return struct.pack("<Q", len(text)) + text, tuple(parts)
