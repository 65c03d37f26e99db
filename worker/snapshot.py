"""The training state in the worker's hands: as tensors, as the image of a file, and back.

Names of tensors: `model.<parameter>`, `optimizer.exp_avg.<parameter>`, `optimizer.exp_avg_sq.<parameter>`.

Checkpoints are safetensors files that `torch.distributed.checkpoint` reads, sharded or whole, so that a state may move to
another number of ranks. Writing does not go through it: measured with the 566 MB state of the 50 M-parameter
configuration on 2 cores (torch 2.13), its writer took 2.3-4.6 s and another 600 MB of memory, since it serialises all
tensors into one bytes object first; writing the image below took 0.4 s and none.
"""

from __future__ import annotations

import json
import mmap
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from state.errors import DataError
from worker.optim import AdamW
from worker.trainer import TrainableModel

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_MODEL = "model."
_MOMENTS = ("optimizer.exp_avg.", "optimizer.exp_avg_sq.")
_SHARDING_KEY = "DCP_SHARDING_INFO"


def training_state(model: TrainableModel, optimizer: AdamW) -> dict[str, Tensor]:
    """Return every tensor of the state by name, in name order; they are the live ones, not copies."""
    tensors = {_MODEL + name: parameter.detach() for name, parameter in model.named_parameters()}
    for kind, moments in zip(_MOMENTS, (optimizer.exp_avg, optimizer.exp_avg_sq), strict=True):
        tensors |= {kind + name: moment for name, moment in moments.items()}
    return dict(sorted(tensors.items()))


@dataclass(frozen=True)
class ImagePart:
    """Where one tensor lies in the image."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class StateImage:
    """A safetensors file in memory, made once, into which a state is copied again and again.

    The copy is all that a checkpoint keeps the training waiting for. The memory is touched when the image is made: the
    first copy would otherwise pay for every page.

    Args:
        tensors: The state whose copies it will hold; their shapes never change.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        header, self.parts = _layout(tensors)
        self.size_bytes = self.parts[-1].end
        self.buffer = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.buffer.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(self.buffer, dtype=np.uint8)
        whole.fill(0)
        whole[: len(header)] = np.frombuffer(header, dtype=np.uint8)
        self._sources = tuple(tensors.values())
        image = torch.from_numpy(whole)
        self._copies = tuple(
            image[part.begin : part.end].view(source.dtype).view(source.shape)
            for part, source in zip(self.parts, self._sources, strict=True)
        )

    def take(self) -> None:
        """Copy the state as it is now."""
        for copy, source in zip(self._copies, self._sources, strict=True):
            if source.device.type == "cpu":
                # One thread copies as fast as the memory allows. Torch's copy takes all threads, each of which must get
                # a core for each tensor: 8 ms a tensor were measured on a busy machine, against 0.2 ms.
                np.copyto(copy.numpy(), source.numpy())
            else:
                copy.copy_(source, non_blocking=True)
        if self._sources[0].device.type == "cuda":
            torch.cuda.synchronize()


def restore_state(
    folder: Path, file_names: Sequence[str], tensors: Mapping[str, Tensor], *, others_allowed: bool = False
) -> None:
    """Read a checkpoint's tensors into the live ones, whatever number of ranks wrote it.

    Args:
        folder: The checkpoint's folder.
        file_names: Its safetensors files.
        tensors: Where to, by name.
        others_allowed: Whether the checkpoint may hold more than these.

    Raises:
        DataError: the checkpoint lacks a tensor, has another shape of it, or holds one that is not asked for.
    """
    paths = [folder / name for name in file_names]
    if len(paths) == 1 and not _is_sharded(paths[0]):
        _restore_whole(paths[0], tensors, others_allowed=others_allowed)
    else:
        _restore_sharded(folder, tensors, others_allowed=others_allowed)


def read_weights(folder: Path, file_names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return a checkpoint's weights alone, on the CPU in fp32, by the names of the parameters.

    Raises:
        DataError: a weight is missing or has another shape.
    """
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    state = {_MODEL + name: weight for name, weight in weights.items()}
    restore_state(folder, file_names, state, others_allowed=True)
    return weights


def _restore_whole(path: Path, tensors: Mapping[str, Tensor], *, others_allowed: bool) -> None:
    with safe_open(path, framework="pt") as file:
        _check_names(set(file.keys()), set(tensors), path.parent, others_allowed=others_allowed)
        for name, tensor in tensors.items():
            stored = file.get_tensor(name)
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise DataError(
                    f"tensor {name} of checkpoint {path.parent.name} is {stored.dtype} {tuple(stored.shape)}",
                    expected=f"{tensor.dtype} {tuple(tensor.shape)}",
                )
            tensor.copy_(stored)


def _restore_sharded(folder: Path, tensors: Mapping[str, Tensor], *, others_allowed: bool) -> None:
    # Imported here: it takes 0.6 s, and only a state that several ranks wrote needs it.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    found = set(reader.read_metadata().state_dict_metadata)
    _check_names(found, set(tensors), folder, others_allowed=others_allowed)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            load(dict(tensors), storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise DataError(f"the tensors of checkpoint {folder.name} do not fit this model: {error}") from error


def _check_names(found: set[str], wanted: set[str], folder: Path, *, others_allowed: bool) -> None:
    if lacking := wanted - found:
        raise DataError(f"checkpoint {folder.name} lacks {len(lacking)} tensors, {min(lacking)} for one")
    if not others_allowed and (unknown := found - wanted):
        raise DataError(f"checkpoint {folder.name} has {len(unknown)} unknown tensors, {min(unknown)} for one")


def _is_sharded(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        return _SHARDING_KEY in (file.metadata() or {})


def _layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, tuple[ImagePart, ...]]:
    """Return the file's header, length prefix included, and where each tensor lies behind it."""
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
    text += b" " * (-(8 + len(text)) % mmap.PAGESIZE)  # tensors start on a page: copies and reads are aligned
    start = 8 + len(text)
    parts = []
    offset = start
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        parts.append(ImagePart(name, _DTYPES[tensor.dtype], tuple(tensor.shape), offset, end))
        offset = end
    return struct.pack("<Q", len(text)) + text, tuple(parts)
