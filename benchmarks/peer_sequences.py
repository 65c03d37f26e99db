"""The peers of reading: mosaicml-streaming and litdata on the same tokens, measured in this very process.

Needs the peers' environment. Each peer's sample is T + 1 tokens, shuffled over the epoch as it does by default; a batch
counts when it is there as a training loop takes it: int64 inputs and targets, torch tensors of [B, T].
Run: python -m benchmarks.peer_sequences {write | epoch | stop | resume} {streaming | litdata} FOLDER T B
     write takes FOLDER/tokens.bin; stop leaves FOLDER at 90 % of an epoch; resume goes on there.
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import shutil
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

PEERS = ("streaming", "litdata")
_CHUNK_BYTES = 64 * 1024 * 1024  # of both peers: the defaults of streaming and (for tokens) of litdata's examples
_YIELDED_SEQUENCES = 64
_LONGEST_S = 8.0


def _import(peer: str) -> Any:
    if peer == "streaming":
        _stand_in_for_torchvision()
        import streaming

        return streaming
    import litdata

    return litdata


def _stand_in_for_torchvision() -> None:
    """Let streaming import torchvision for its picture datasets, which nothing here touches: no build of it fits our torch."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


def write(peer: str, folder: Path, width: int) -> None:
    """Write the tokens as the peer stores them."""
    package = _import(peer)
    target = folder / peer
    shutil.rmtree(target, ignore_errors=True)
    if peer == "litdata":
        package.optimize(
            functools.partial(_pieces, folder / "tokens.bin", width),
            inputs=[0],
            output_dir=str(target),
            chunk_bytes=_CHUNK_BYTES,
            num_workers=1,
            item_loader=package.TokensLoader(block_size=width),
        )
        return
    columns = {"tokens": f"ndarray:uint16:{width}"}
    with package.MDSWriter(out=str(target), columns=columns, size_limit=_CHUNK_BYTES) as writer:
        for piece in _pieces(folder / "tokens.bin", width, 0):
            for row in piece.numpy().reshape(-1, width):
                writer.write({"tokens": row})


def _pieces(path: Path, width: int, _: int) -> Iterator[torch.Tensor]:
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens = tokens[: len(tokens) // width * width]
    for start in range(0, len(tokens), width * _YIELDED_SEQUENCES):
        yield torch.from_numpy(tokens[start : start + width * _YIELDED_SEQUENCES])


def loader(peer: str, folder: Path, width: int, batch_size: int) -> Any:
    """Open the peer's data."""
    package = _import(peer)
    if peer == "litdata":
        dataset = package.StreamingDataset(
            str(folder / peer), item_loader=package.TokensLoader(block_size=width), shuffle=True, drop_last=True, seed=0
        )
        return package.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0, collate_fn=_stacked_tensors)
    dataset = package.StreamingDataset(local=str(folder / peer), shuffle=True, batch_size=batch_size, shuffle_seed=0)
    return package.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0, drop_last=True, collate_fn=_stacked_arrays)


def _stacked_arrays(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    return _inputs_and_targets(np.stack([sample["tokens"] for sample in samples]))


def _stacked_tensors(samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return _inputs_and_targets(np.stack([sample.numpy() for sample in samples]))


def _inputs_and_targets(tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.from_numpy(tokens.astype(np.int64))
    return wide[:, :-1], wide[:, 1:]


def epoch(batches: Any) -> dict[str, Any]:
    """Return the sequences per second of an epoch, from its second batch on."""
    num_sequences = 0
    began = 0.0
    for inputs, _ in batches:
        if not began:
            began = time.perf_counter()
        else:
            num_sequences += len(inputs)
            if time.perf_counter() - began > _LONGEST_S:
                break
    return {"sequences_per_s": num_sequences / (time.perf_counter() - began), "sequences": num_sequences}


def stop(batches: Any, folder: Path, peer: str) -> dict[str, Any]:
    """Go through 90 % of an epoch and leave the peer's own state."""
    for number, _ in enumerate(batches, 1):
        if number == int(len(batches) * 0.9):
            break
    (folder / f"{peer}.state").write_text(json.dumps(batches.state_dict()))
    return {"batches": number}


def resume(peer: str, folder: Path, width: int, batch_size: int) -> dict[str, Any]:
    """Return the milliseconds from opening to the first batch at 90 % of an epoch; imports are done before."""
    _import(peer)
    began = time.perf_counter()
    batches = loader(peer, folder, width, batch_size)
    batches.load_state_dict(json.loads((folder / f"{peer}.state").read_text()))
    inputs, _ = next(iter(batches))
    return {"first_batch_ms": (time.perf_counter() - began) * 1000, "sequences": len(inputs)}


def main() -> None:
    what, peer, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    width, batch_size = int(sys.argv[4]) + 1, int(sys.argv[5])
    result: dict[str, Any] = {}
    match what:
        case "write":
            write(peer, folder, width)
        case "epoch":
            result = epoch(loader(peer, folder, width, batch_size))
        case "stop":
            result = stop(loader(peer, folder, width, batch_size), folder, peer)
        case "resume":
            result = resume(peer, folder, width, batch_size)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
