from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from state.errors import CorruptCheckpointError, DataError
from state.spec import TrainingSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from state.tensor_files import tensor_entries
from tests.factories import commit_checkpoint
from tests.sessions import small_architecture
from worker.checkpoint.snapshot import StateImage, read_weights, restore_state, training_state
from worker.model.gemma3 import Gemma3
from worker.model.weights import initial_state, parameter_shapes
from worker.train.optim import AdamW

FILE = "state.safetensors"


def make_state(seed: int = 0) -> dict[str, Tensor]:
    """A state whose moments are not zero."""
    arch = small_architecture()
    model = Gemma3(arch)
    model.load_state_dict(initial_state(arch, seed))
    optimizer = AdamW(dict(model.named_parameters()), TrainingSpec())
    generator = torch.Generator().manual_seed(seed)
    for moments in (optimizer.exp_avg, optimizer.exp_avg_sq):
        for moment in moments.values():
            moment.normal_(generator=generator)
    return training_state(model, optimizer)


def blank(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, float("nan")) for name, tensor in state.items()}


def write(image: StateImage, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(image.buffer[:])
    return folder / FILE


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_has_weights_and_both_moments_under_flat_names_in_order():
    names = list(make_state())
    assert names == sorted(names)
    assert len(names) == 3 * len(parameter_shapes(small_architecture()))
    assert {"model.embedder.weight", "optimizer.exp_avg.model.norm.weight"} < set(names)
    assert "optimizer.exp_avg_sq.model.layers.0.self_attn.qkv_proj.weight" in names


def test_where_there_are_no_huge_pages_an_image_is_made_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    state = make_state()
    image = StateImage(state)
    image.take()
    assert same(load_file(write(image, tmp_path)), state)


def test_the_image_is_a_safetensors_file(tmp_path: Path):
    state = make_state()
    image = StateImage(state)
    image.take()
    path = write(image, tmp_path)
    assert path.stat().st_size == image.size_bytes
    assert same(load_file(path), state)
    assert [entry.name for entry in tensor_entries([path])] == list(state)


def test_the_image_stays_as_it_was_taken(tmp_path: Path):
    state = make_state()
    image = StateImage(state)
    image.take()
    before = image.buffer[:]
    for tensor in state.values():
        tensor.add_(1.0)
    assert image.buffer[:] == before
    image.take()
    assert same(load_file(write(image, tmp_path)), state)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path):
    state = make_state()
    image = StateImage(state)
    image.take()
    write(image, tmp_path)
    restored = blank(state)
    restore_state(tmp_path, [FILE], restored)
    assert same(restored, state)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torch_distributed_checkpoint_reads_the_image(tmp_path: Path):
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    state = make_state()
    image = StateImage(state)
    image.take()
    write(image, tmp_path)
    restored = blank(state)
    load(dict(restored), storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert same(restored, state)


def write_shards(state: dict[str, Tensor], folder: Path) -> list[str]:
    """Write a state as two ranks of `torch.distributed.checkpoint` do: each has a part of the rows of every tensor."""
    names = []
    for rank in range(2):
        pieces, offsets = {}, {}
        for name, tensor in state.items():
            half = (len(tensor) + 1) // 2
            pieces[name] = (tensor[:half] if rank == 0 else tensor[half:]).contiguous()
            offsets[name] = {"saved_offsets": [rank * half, *[0] * (tensor.ndim - 1)]}
        names.append(f"shard-0000{rank + 1}-model-00001-of-00001.safetensors")
        save_file(pieces, folder / names[-1], metadata={"DCP_SHARDING_INFO": json.dumps(offsets)})
    return names


def test_a_state_that_two_ranks_wrote_comes_back_into_one(tmp_path: Path):
    state = make_state()
    restored = blank(state)
    restore_state(tmp_path, write_shards(state, tmp_path), restored)
    assert same(restored, state)


def test_one_rank_of_torch_distributed_checkpoint_is_read_as_well(tmp_path: Path):
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    state = make_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, storage_writer=HuggingFaceStorageWriter(str(tmp_path), save_distributed=True), no_dist=True)
    restored = blank(state)
    restore_state(tmp_path, [name for name in os.listdir(tmp_path) if name.endswith(".safetensors")], restored)
    assert same(restored, state)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_without_a_tensor_is_refused(tmp_path: Path, sharded: bool):
    state = make_state()
    less = dict(list(state.items())[1:])
    missing = next(iter(state))
    if sharded:
        names = write_shards(less, tmp_path)
    else:
        save_file(less, tmp_path / FILE)
        names = [FILE]
    with pytest.raises(DataError, match=f"1 tensors are missing in checkpoint .*: {missing} is the first"):
        restore_state(tmp_path, names, blank(state))


def test_a_checkpoint_with_an_unknown_tensor_is_refused(tmp_path: Path):
    state = make_state()
    save_file(state | {"model.extra": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(DataError, match=r"1 tensors of checkpoint .* are unknown: model\.extra is the first"):
        restore_state(tmp_path, [FILE], blank(state))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_tensor_of_another_shape_is_refused(tmp_path: Path, sharded: bool):
    state = make_state()
    other = state | {"model.model.norm.weight": torch.zeros(9)}
    if sharded:
        names = write_shards(other, tmp_path)
    else:
        save_file(other, tmp_path / FILE)
        names = [FILE]
    with pytest.raises(DataError, match=r"model\.model\.norm\.weight"):
        restore_state(tmp_path, names, blank(state))


def test_what_is_read_is_told_with_the_digest_of_the_bytes_that_were_restored(tmp_path: Path):
    state = make_state()
    names = write_shards(state, tmp_path)
    read = restore_state(tmp_path, names, blank(state))
    assert [entry.name for entry in read] == names
    for entry in read:
        content = (tmp_path / entry.name).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_file_that_is_not_named_is_never_read(tmp_path: Path):
    state = make_state()
    names = write_shards(state, tmp_path)
    strange = {name: torch.full_like(tensor, 66.0) for name, tensor in state.items()}
    save_file(strange, tmp_path / "zz.safetensors")
    (tmp_path / "zzz.safetensors").write_bytes(b"not even a safetensors file")
    restored = blank(state)
    restore_state(tmp_path, names, restored)
    assert same(restored, state)


def write_blocks(folder: Path, *blocks: tuple[tuple[int, int], Tensor]) -> list[str]:
    """Write blocks of one tensor, each with its place, a file each."""
    names = []
    for offset, block in blocks:
        names.append(f"rank-{len(names)}.safetensors")
        sharding = json.dumps({"m": {"saved_offsets": list(offset)}})
        save_file({"m": block.contiguous()}, folder / names[-1], metadata={"DCP_SHARDING_INFO": sharding})
    return names


WHOLE = torch.arange(24.0).view(4, 6)


def test_blocks_that_are_narrower_than_their_tensor_come_together(tmp_path: Path):
    blocks = [((row, column), WHOLE[row : row + 2, column : column + 3]) for row in (0, 2) for column in (3, 0)]
    restored = torch.full_like(WHOLE, float("nan"))
    restore_state(tmp_path, write_blocks(tmp_path, *blocks), {"m": restored})
    assert torch.equal(restored, WHOLE)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([((0, 0), WHOLE[:2])], "hold 12 numbers of tensor m"),
        ([((0, 0), WHOLE[:3]), ((2, 0), WHOLE[2:])], "overlap"),
        ([((0, 0), WHOLE[:2]), ((3, 0), WHOLE[2:])], "is at .3, 0. and has the shape .2, 6."),
        ([((0, 0), WHOLE.double())], "is F64"),
        ([((0, 0), WHOLE.view(24))], "is F32 .24,."),
    ],
)
def test_blocks_that_do_not_make_the_tensor_whole_are_refused(
    tmp_path: Path, blocks: list[tuple[tuple[int, int], Tensor]], said: str
):
    with pytest.raises(DataError, match=said):
        restore_state(tmp_path, write_blocks(tmp_path, *blocks), {"m": torch.zeros(4, 6)})


@pytest.mark.parametrize("offsets", [[[0, 8], [4, 12]], [[0, 8], [16, 8]], [[0, 8], [8, 12]]])
def test_a_header_whose_places_make_no_sense_is_refused(tmp_path: Path, offsets: list[list[int]]):
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": place} for name, place in zip("ab", offsets, strict=True)}
    text = json.dumps(header).encode()
    (tmp_path / FILE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(DataError):
        restore_state(tmp_path, [FILE], {"a": torch.zeros(2), "b": torch.zeros(2)})


def test_a_file_that_ends_early_is_refused(tmp_path: Path):
    state = make_state()
    image = StateImage(state)
    image.take()
    path = write(image, tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=f"{FILE} ends after"):
        restore_state(tmp_path, [FILE], blank(state))


def test_a_state_on_a_device_is_read_through_a_buffer(tmp_path: Path):
    """Meta tensors take the way of every device but the CPU; they have shapes and no numbers."""
    state = make_state()
    save_file(state, tmp_path / FILE)
    (read,) = restore_state(tmp_path, [FILE], {name: tensor.to("meta") for name, tensor in state.items()})
    assert read.sha256 == hashlib.sha256((tmp_path / FILE).read_bytes()).hexdigest()


@pytest.fixture
def committed(tmp_path: Path) -> tuple[DirectoryCheckpointStore, str, dict[str, Tensor]]:
    """A store with a checkpoint of a state."""
    state = make_state()
    image = StateImage(state)
    image.take()
    store = DirectoryCheckpointStore(tmp_path / "checkpoints")
    manifest = commit_checkpoint(store, 10, files={FILE: image.buffer[:]})
    return store, manifest.id, state


def test_weights_alone_can_be_read(committed: tuple[DirectoryCheckpointStore, str, dict[str, Tensor]]):
    store, checkpoint_id, state = committed
    shapes = parameter_shapes(small_architecture())
    weights = read_weights(store, checkpoint_id, shapes)
    assert list(weights) == list(shapes)
    assert all(torch.equal(weights[name], state[f"model.{name}"]) for name in shapes)


def test_weights_are_not_given_out_when_any_byte_of_their_file_has_changed(
    committed: tuple[DirectoryCheckpointStore, str, dict[str, Tensor]],
):
    store, checkpoint_id, _ = committed
    path = store.folder(checkpoint_id) / FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the second moments, which nobody asks for
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=f"{FILE} of checkpoint .* has changed"):
        read_weights(store, checkpoint_id, parameter_shapes(small_architecture()))


def test_tensors_of_the_image_begin_on_a_page():
    image = StateImage(make_state())
    (header_bytes,) = struct.unpack("<Q", image.buffer[:8])
    assert (8 + header_bytes) % 4096 == 0
    assert image.parts[0].begin == 8 + header_bytes
    assert np.frombuffer(image.buffer, dtype=np.uint8).ctypes.data % 4096 == 0
