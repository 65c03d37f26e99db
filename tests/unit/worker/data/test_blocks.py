import errno
import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.data_manifest import BLOCK_TOKENS, DataManifest
from state.errors import DataError, TemporaryError
from tests.token_data import write_data
from worker.data.blocks import BlockStream, ReadAt, blocks_of, read_at
from worker.data.verification import Verification

NUM_TOKENS = 3 * BLOCK_TOKENS + 12_345
TOKENS = np.random.default_rng(0).integers(0, 65_536, NUM_TOKENS).astype("<u2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of which none ends where a block does."""
    folder = tmp_path_factory.mktemp("blocks")
    write_data(folder, {"hindi": TOKENS}, vocab_size=65_536, shard_tokens=900_000)
    return folder


def manifest_of(folder: Path) -> DataManifest:
    return DataManifest.from_json((folder / "data.json").read_bytes(), "data.json")


class Stream(BlockStream):
    """A stream of the folder's tokens, with its own verification."""

    def __init__(self, folder: Path, *, read: ReadAt = read_at) -> None:
        self.verification = Verification()
        language = manifest_of(folder).languages["hindi"]
        super().__init__(folder, "hindi", language, np.dtype("<u2"), self.verification, read=read)


def rows(made: Stream, starts: list[int], width: int) -> np.ndarray:
    """Rows that are verified."""
    out = np.empty((len(starts), width), dtype="<u2")
    for row, start in zip(out, starts, strict=True):
        made.fill(start, row)
    made.verification.settle()
    return out


class CountingReader:
    """Counts how often each byte range is read, and fails when told to."""

    def __init__(self) -> None:
        self.reads: Counter[tuple[str, int, int]] = Counter()
        self.error: OSError | None = None

    def whole_blocks(self) -> Counter[tuple[str, int]]:
        """The reads that are not rows of 65 tokens at most."""
        return Counter({(name, offset): n for (name, offset, num_bytes), n in self.reads.items() if num_bytes > 130})

    def __call__(self, path: Path, offset: int, num_bytes: int) -> bytes:
        self.reads[path.name, offset, num_bytes] += 1
        if self.error:
            raise self.error
        return read_at(path, offset, num_bytes)


def test_a_files_bytes_are_read_from_where_they_begin_and_fewer_at_its_end(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_at(tmp_path / "file", 3, 4) == b"3456"
    assert read_at(tmp_path / "file", 8, 100) == b"89"
    assert read_at(tmp_path / "file", 20, 1) == b""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=20), st.sampled_from([2, 65, 5000, 1_500_000]))
def test_rows_are_the_streams_tokens_wherever_blocks_and_shards_meet(folder: Path, places: list[int], width: int):
    starts = [min(place, NUM_TOKENS - width) for place in places][: 20 if width < 10_000 else 2]
    made = Stream(folder)
    for _ in ("before it is verified", "after"):
        assert (rows(made, starts, width) == np.stack([TOKENS[start : start + width] for start in starts])).all()


def test_a_row_may_end_with_the_token_after_its_block(folder: Path):
    reader = CountingReader()
    made = Stream(folder, read=reader)
    assert (blocks_of(BLOCK_TOKENS - 64, 65), blocks_of(BLOCK_TOKENS - 63, 65)) == (range(1), range(2))
    read = rows(made, [BLOCK_TOKENS - 64], 65)
    assert (read[0] == TOKENS[BLOCK_TOKENS - 64 : BLOCK_TOKENS + 1]).all()
    assert set(reader.whole_blocks()) == {("hindi.train-00000.tokens", 0), ("hindi.train-00001.tokens", 0)}


def test_a_block_is_verified_at_its_first_touch_and_only_then(folder: Path):
    reader = CountingReader()
    made = Stream(folder, read=reader)
    rows(made, [5, 10, BLOCK_TOKENS + 5, 3 * BLOCK_TOKENS], 65)
    first = dict(reader.reads)
    assert set(reader.whole_blocks().values()) == {1}
    rows(made, [7, 2 * BLOCK_TOKENS - 300, NUM_TOKENS - 65], 65)
    assert dict(reader.reads) == first


def test_a_block_comes_with_the_token_after_it(folder: Path):
    made = Stream(folder)
    assert [len(made.block(number)) for number in range(4)] == [2 * (BLOCK_TOKENS + 1)] * 3 + [2 * 12_345]
    assert made.block(1) == TOKENS[BLOCK_TOKENS : 2 * BLOCK_TOKENS + 1].tobytes()


@pytest.mark.parametrize("at", [0, 17, 899_999, 900_000])
def test_a_changed_byte_is_found_by_whatever_reads_its_block(tmp_path: Path, at: int):
    write_data(tmp_path, {"hindi": TOKENS[:1_500_000]}, vocab_size=65_536, shard_tokens=900_000)
    shard = tmp_path / f"hindi.train-0000{at // 900_000}.tokens"
    data = bytearray(shard.read_bytes())
    data[at % 900_000 * 2] ^= 4
    shard.write_bytes(data)
    made = Stream(tmp_path)
    assert (rows(made, [BLOCK_TOKENS + 9], 65) == TOKENS[BLOCK_TOKENS + 9 : BLOCK_TOKENS + 74]).all()
    for _ in range(2):
        with pytest.raises(DataError, match="has changed: block 0 of 'hindi'") as caught:
            rows(made, [500_000], 65)
    assert str(shard) in caught.value.what
    assert f"remove {tmp_path}" in caught.value.remedy


def test_the_token_after_a_block_is_verified_with_it(tmp_path: Path):
    tokens = TOKENS[: BLOCK_TOKENS + 100]
    write_data(tmp_path, {"hindi": tokens}, vocab_size=65_536, shard_tokens=BLOCK_TOKENS)
    shard = tmp_path / "hindi.train-00001.tokens"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    with pytest.raises(DataError, match="has changed: block 0"):
        rows(Stream(tmp_path), [0], 65)


@pytest.mark.parametrize("num_bytes", [0, 130])
def test_a_shard_that_is_cut_short_while_it_is_read_has_changed(tmp_path: Path, num_bytes: int):
    write_data(tmp_path, {"hindi": TOKENS[:5000]}, vocab_size=65_536)
    made = Stream(tmp_path)
    os.truncate(tmp_path / "hindi.train-00000.tokens", num_bytes)
    with pytest.raises(DataError, match="has changed: block 0"):
        rows(made, [0], 65)


def test_a_mount_that_fails_is_no_damage_and_may_be_read_again_later(folder: Path):
    reader = CountingReader()
    made = Stream(folder, read=reader)
    reader.error = OSError(errno.EIO, "Input/output error", "mount/shard")
    with pytest.raises(TemporaryError, match=r"a sequence of 'hindi' cannot be read from mount/shard \(Input/output error\)"):
        rows(made, [0], 65)
    reader.error = None
    assert (rows(made, [0], 65)[0] == TOKENS[:65]).all()


def test_a_mount_that_fails_while_a_block_is_verified_leaves_it_unverified(folder: Path):
    def read_rows(path: Path, offset: int, num_bytes: int) -> bytes:
        if num_bytes > 130:
            raise OSError(errno.EIO, "Input/output error", "mount/shard")
        return read_at(path, offset, num_bytes)

    made = Stream(folder, read=read_rows)
    for _ in range(2):
        with pytest.raises(TemporaryError, match=r"block 0 of 'hindi' cannot be read from mount/shard \(Input/output error\)"):
            rows(made, [0], 65)


@pytest.mark.parametrize(("damage", "message"), [(b"", "has 0 bytes"), (None, "cannot be read")])
def test_a_shard_of_another_size_is_found_when_the_stream_is_opened(tmp_path: Path, damage: bytes | None, message: str):
    write_data(tmp_path, {"hindi": TOKENS[:5000]}, vocab_size=65_536)
    shard = tmp_path / "hindi.train-00000.tokens"
    shard.unlink()
    if damage is not None:
        shard.write_bytes(damage)
    with pytest.raises(DataError, match=message):
        Stream(tmp_path)


def test_blocks_digests_do_not_depend_on_the_shards(tmp_path: Path, folder: Path):
    other = write_data(tmp_path, {"hindi": TOKENS}, vocab_size=65_536, shard_tokens=BLOCK_TOKENS)
    assert other.languages["hindi"].blocks == manifest_of(folder).languages["hindi"].blocks
    assert other.languages["hindi"].blocks[3] == hashlib.sha256(TOKENS[3 * BLOCK_TOKENS :].tobytes()).hexdigest()
