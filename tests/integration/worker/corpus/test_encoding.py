import os
import pickle
import signal
from pathlib import Path

import pytest

from state.data_manifest import Recipe
from state.errors import TemporaryError
from worker.corpus.chunks import Chunk, ChunkReader
from worker.corpus.encoding import EncoderSetup, Pack, encode_packs, pack_of
from worker.corpus.shipped import sample_tokenizer_path
from worker.corpus.sources import find_sources
from worker.corpus.units import read_unit


def chunks_of(folder: Path, *lines: str) -> list[Chunk]:
    path = folder / "corpus" / "english" / "a.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    (source,) = find_sources([folder / "corpus"], Recipe()).files
    return list(ChunkReader(source, Recipe()).chunks())


def setup(recipe: Recipe | None = None) -> EncoderSetup:
    return EncoderSetup(recipe or Recipe(), sample_tokenizer_path())


def test_processes_do_what_one_does(tmp_path: Path):
    chunks = chunks_of(tmp_path, *[f'{{"text": "document {number}"}}' for number in range(40)])
    packs = {}
    for folder, num_workers in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        packs[folder] = [pack_of(chunks, number, tmp_path / folder, bytes([number])) for number in range(1, 8)]
        done = list(encode_packs(iter(packs[folder]), setup(), num_workers))
        assert sorted(each.pack_bytes for each in done) == list(range(1, 8))
    for one, two in zip(packs["one"], packs["two"], strict=True):
        assert one.unit.read_bytes() == two.unit.read_bytes()
        assert read_unit(one.unit).header.num_documents == 40


class _Deadly:
    """Kills the process that unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[int, int]]:
        return _kill_self, ()


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_said_with_the_next_command(tmp_path: Path):
    pack = Pack(tmp_path / "a.unit", pickle.dumps(_Deadly()), 1)
    with pytest.raises(TemporaryError, match="an encoding process was killed"):
        list(encode_packs(iter([pack]), setup(), 2))
