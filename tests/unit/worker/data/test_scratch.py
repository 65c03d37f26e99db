import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.data_manifest import BLOCK_TOKENS, DataManifest
from state.errors import DataError
from tests.token_data import write_data
from worker.data.batches import Batches, TokenData, read_data_manifest
from worker.data.blocks import read_at
from worker.data.order import BatchOrder
from worker.data.scratch import BlockId, Copier, Scratch, Slots, Wanted, wanted_at

U16 = np.dtype("<u2")
SLOT_BYTES = 2 * (BLOCK_TOKENS + 1)
WEIGHTS = {"english": 0.6, "hindi": 0.3, "konkani": 0.1}
LARGE_T = BLOCK_TOKENS // 8  # 8 sequences in a block
NUM_BLOCKS = {"english": 200, "hindi": 100, "konkani": 3}
GENERATOR = np.random.default_rng(0)
TOKENS = {
    name: GENERATOR.integers(0, 65_536, num_tokens).astype("<u2")
    for name, num_tokens in {"english": 3 * BLOCK_TOKENS + 777, "hindi": BLOCK_TOKENS + 5000, "konkani": 30_000}.items()
}


def large_order(weights: dict[str, float] | None = None) -> BatchOrder:
    """The order of three languages of which two have several windows."""
    return BatchOrder(
        seed=1,
        batch_size=8,
        weights=weights or WEIGHTS,
        num_sequences={name: 8 * count for name, count in NUM_BLOCKS.items()},
        sequence_length=LARGE_T,
    )


def drawn_at(order: BatchOrder, sample: int) -> dict[str, int]:
    return dict(zip(order.languages, order.drawn(sample), strict=True))


class FewBytes:
    """Blocks of a few bytes, as many as are asked for: no test needs gigabytes to fill many slots."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.reads: Counter[int] = Counter()
        self.error: Exception | None = None
        self.permits: threading.Semaphore | None = None

    def block(self, number: int) -> bytes:
        if self.permits:
            assert self.permits.acquire(timeout=60)
        self.reads[number] += 1
        if self.error:
            raise self.error
        return np.full(65, number, dtype=U16).tobytes()


class FullDisk(Slots):
    """Slots on a disk that has room for five blocks."""

    def write(self, slot: int, data: bytes) -> None:
        if slot >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(slot, data)


class BrokenDisk(Slots):
    """Slots on a disk that takes nothing."""

    def write(self, slot: int, data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")


class WornDisk(Slots):
    """Slots on a disk that takes each byte once."""

    def write(self, slot: int, data: bytes) -> None:
        if len(self) == self.num_slots - 1 and slot < len(self):
            raise OSError(errno.EIO, "Input/output error")
        super().write(slot, data)


class Bench:
    """A copier of blocks of a few bytes, with what it says."""

    def __init__(self, folder: Path, num_slots: int, slots: type[Slots] = Slots) -> None:
        self.order = large_order()
        self.slots = slots(folder, min(num_slots, 303), NUM_BLOCKS, U16)
        self.sources = {name: FewBytes(name) for name in WEIGHTS}
        self.said: list[str] = []
        self.copier = Copier(self.slots, self.order, self.sources, self.said.append)

    def wanted(self, sample: int) -> Wanted:
        return wanted_at(self.order, drawn_at(self.order, sample))

    def held(self) -> set[BlockId]:
        return {(name, number) for name, count in NUM_BLOCKS.items() for number in range(count) if (name, number) in self.slots}

    def reads(self) -> int:
        return sum(source.reads.total() for source in self.sources.values())


def wait_for_verification() -> None:
    """Wait for the threads of batches that nobody has closed, of an earlier test as well: they end with their work."""
    for thread in threading.enumerate():
        if thread.name == "verification":
            thread.join(60)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    wait_for_verification()
    before = set(threading.enumerate())
    yield
    wait_for_verification()
    assert set(threading.enumerate()) <= before  # one of another test may have ended meanwhile


# What is wanted


def test_what_is_needed_first_comes_first_and_the_next_windows_come_last():
    order = large_order()
    drawn = drawn_at(order, 100)
    wanted = wanted_at(order, drawn)
    read = order.samples(100, 8 * sum(NUM_BLOCKS.values()))
    touched = [
        (order.languages[language], sequence // 8)
        for language, sequence in zip(read.language.tolist(), read.sequence.tolist(), strict=True)
    ]
    in_need = list(dict.fromkeys(touched))
    assert all(abs(place - in_need.index(block)) <= 12 for place, block in enumerate(wanted.now[:40])), "but for the jitter"
    assert set(wanted.now) & set(wanted.next) == set()
    for name in order.languages:
        one = order.language_order(name)
        window = one.window(drawn[name])
        assert [block for language, block in wanted.now if language == name] == list(one.needs(drawn[name]))
        both = one.needs(drawn[name]).keys() | one.needs(window.end).keys()
        assert {block for language, block in wanted.now + wanted.next if language == name} == both


def test_the_next_window_may_be_the_next_epochs_first():
    order = large_order({"hindi": 1.0})
    wanted = wanted_at(order, {"hindi": 799})
    assert len(wanted.now) == 1
    assert {block for _, block in wanted.now + wanted.next} == order.language_order("hindi").needs(800).keys() | {
        wanted.now[0][1]
    }


def test_as_many_blocks_are_wanted_as_fit():
    wanted = Wanted(now=(("a", 1), ("a", 2)), next=(("a", 3), ("b", 1)))
    assert wanted.first(3) == (("a", 1), ("a", 2), ("a", 3))
    assert wanted.first(0) == ()


@pytest.mark.parametrize("sequence_length", [LARGE_T, LARGE_T + 1, 700_000, 3 * BLOCK_TOKENS + 5])
def test_without_a_budget_two_windows_of_each_language_fit(sequence_length: int):
    sizes = {name: 8 * count for name, count in NUM_BLOCKS.items()}
    order = BatchOrder(seed=1, batch_size=8, weights=WEIGHTS, num_sequences=sizes, sequence_length=sequence_length)
    blocks = {name: -(-sizes[name] * sequence_length // BLOCK_TOKENS) for name in sizes}
    num_slots = Scratch(Path("unused")).num_slots(order, blocks, SLOT_BYTES)
    for sample in (0, 700, 5000, 8 * 200, 99_999):
        wanted = wanted_at(order, drawn_at(order, sample))
        assert len(wanted.now + wanted.next) <= num_slots
    assert num_slots <= sum(blocks.values())


def test_a_budget_is_never_exceeded_and_no_more_than_the_data_is_taken():
    order = large_order()
    assert Scratch(Path("unused"), 3 * SLOT_BYTES - 1).num_slots(order, NUM_BLOCKS, SLOT_BYTES) == 2
    assert Scratch(Path("unused"), 10**15).num_slots(order, NUM_BLOCKS, SLOT_BYTES) == 303


# Slots


def test_rows_within_and_across_blocks_are_read_from_slots_in_any_order(tmp_path: Path):
    tokens = TOKENS["english"]
    slots = Slots(tmp_path, 4, {"english": 4}, U16)
    for block in (2, 0, 1):
        slots.put(("english", block), tokens[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS + 1].tobytes(), frozenset())
    out = np.zeros(65, dtype=U16)
    for start in (7, BLOCK_TOKENS - 64, 2 * BLOCK_TOKENS - 63, BLOCK_TOKENS):
        assert slots.fill("english", start, out)
        assert (out == tokens[start : start + 65]).all()
    for start in (3 * BLOCK_TOKENS + 1, 3 * BLOCK_TOKENS - 30):
        assert not slots.fill("english", start, out)
    slots.close()


def test_the_oldest_block_that_need_not_be_kept_makes_room(tmp_path: Path):
    slots = Slots(tmp_path, 2, {"english": 9}, U16)
    for block in range(2):
        slots.put(("english", block), bytes([block]) * 18, frozenset())
    slots.put(("english", 7), bytes([7]) * 18, frozenset({("english", 0), ("english", 7)}))
    assert [block for block in range(9) if ("english", block) in slots] == [0, 7]
    out = np.zeros(9, dtype=U16)
    assert not slots.fill("english", BLOCK_TOKENS, out)
    assert slots.fill("english", 7 * BLOCK_TOKENS, out)
    assert out.tolist() == [0x0707] * 9
    slots.close()
    assert not slots.fill("english", 7 * BLOCK_TOKENS, out)


def test_a_row_may_be_longer_than_all_of_scratch(tmp_path: Path):
    width = 2 * BLOCK_TOKENS + 1
    slots = Slots(tmp_path, 1, {"english": 4}, U16)
    slots.put(("english", 0), TOKENS["english"][: BLOCK_TOKENS + 1].tobytes(), frozenset())
    assert not slots.fill("english", 0, np.zeros(width, dtype=U16))
    slots.close()


def test_scratch_has_no_name_so_a_killed_session_leaves_nothing_and_two_never_meet(tmp_path: Path):
    first, second = (Slots(tmp_path / "new", 2, {"hindi": 2}, U16) for _ in range(2))
    first.put(("hindi", 0), bytes(18), frozenset())
    assert ("hindi", 0) not in second
    assert os.listdir(tmp_path / "new") == []
    first.close()
    second.close()


# The copier


def test_the_first_batch_waits_for_the_current_windows_and_for_nothing_else(tmp_path: Path):
    bench = Bench(tmp_path, num_slots=303)
    wanted = bench.wanted(0)
    permits = threading.Semaphore(len(wanted.now) - 1)
    for source in bench.sources.values():
        source.permits = permits
    with closing(bench.copier):
        first = threading.Thread(target=bench.copier.at, args=(0,))
        first.start()
        first.join(0.05)
        assert first.is_alive()
        permits.release()
        first.join(60)
        assert bench.held() == set(wanted.now)
        bench.copier.at(1000)  # the copier stands still, and is not waited for
        permits.release(1000)


def test_blocks_come_ahead_once_each_and_go_in_order_within_the_budget(tmp_path: Path):
    bench = Bench(tmp_path, num_slots=260)
    with closing(bench.copier):
        for sample in range(0, 8 * 300, 64):
            wanted = bench.wanted(sample)
            if sample:
                assert bench.held() >= set(wanted.now), "what is needed now was brought while the windows before were read"
            bench.copier.at(sample)
            bench.copier.settle()
            assert bench.held() >= set(wanted.first(260))
            assert len(bench.held()) <= 260
        epochs = 1 + 8 * 300 * np.array([0.6, 0.3, 0.1]) / (8 * np.array([200, 100, 3]))
    assert max(bench.sources["english"].reads.values()) <= 2 * np.ceil(epochs[0])
    assert max(bench.sources["konkani"].reads.values()) == 1, "it stays: each of its windows holds the same blocks"
    assert bench.said == []


def test_with_room_for_all_nothing_is_copied_twice(tmp_path: Path):
    bench = Bench(tmp_path, num_slots=1000)
    with closing(bench.copier):
        for sample in range(0, 8 * 1000, 64):
            bench.copier.at(sample)
            bench.copier.settle()
        assert bench.reads() == bench.slots.num_slots == len(bench.held()) == 303


@pytest.mark.parametrize("sample", [77_777, 8 * 10_000_000])
def test_the_copier_begins_anywhere_and_may_be_sent_back(tmp_path: Path, sample: int):
    bench = Bench(tmp_path, num_slots=140)
    with closing(bench.copier):
        for place in (sample, 0, sample + 999):
            bench.copier.at(place)
            bench.copier.settle()
            assert bench.held() >= set(bench.wanted(place).first(140))


def test_a_budget_for_less_than_the_windows_holds_what_is_needed_first(tmp_path: Path):
    bench = Bench(tmp_path, num_slots=10)
    with closing(bench.copier):
        bench.copier.at(0)
        assert bench.held() == set(bench.wanted(0).now[:10])


def test_a_full_disk_holds_what_is_needed_first_and_that_is_said_once(tmp_path: Path):
    bench = Bench(tmp_path, num_slots=100, slots=FullDisk)
    with closing(bench.copier):
        for sample in (0, 5000, 10_000):
            bench.copier.at(sample)
            bench.copier.settle()
            assert bench.held() == set(bench.wanted(sample).now[:5])
    assert bench.said == ["scratch is limited to 5 blocks (No space left on device); reading is slower"]


def test_a_disk_that_takes_nothing_is_done_without(tmp_path: Path):
    bench = Bench(tmp_path, num_slots=100, slots=BrokenDisk)
    with closing(bench.copier):
        for sample in (0, 5000, 10_000):
            bench.copier.at(sample)
            bench.copier.settle()
            assert bench.held() == set()
    assert bench.said == ["scratch is limited to 0 blocks (Read-only file system); reading is slower"]


def test_a_disk_that_breaks_ends_the_copying(tmp_path: Path):
    bench = Bench(tmp_path, num_slots=20, slots=WornDisk)
    with closing(bench.copier):
        for sample in (0, 5000, 10_000):
            bench.copier.at(sample)
            bench.copier.settle()
        assert bench.held() <= set(bench.wanted(0).now[:20])
    assert bench.said == ["scratch cannot be written (Input/output error); missing blocks are read from the data folder, slower"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), DataError("block 5 has changed")])
def test_a_block_that_cannot_be_copied_is_left_out_and_tried_again_in_the_next_window(tmp_path: Path, error: Exception):
    bench = Bench(tmp_path, num_slots=303)
    bench.sources["english"].error = error
    with closing(bench.copier):
        bench.copier.at(0)
        bench.copier.settle()
        wanted = bench.wanted(0)
        assert bench.held() == {block for block in wanted.now + wanted.next if block[0] != "english"}
        assert len(bench.said) == 1
        assert "of 'english' is not copied to scratch" in bench.said[0]
        bench.sources["english"].error = None
        bench.copier.at(1000)
        bench.copier.settle()
        assert bench.held() >= set(bench.wanted(1000).now)
    assert len(bench.said) == 1


def test_closing_ends_the_thread_in_the_middle_of_its_work_and_can_be_done_twice(tmp_path: Path):
    bench = Bench(tmp_path, num_slots=303)
    permits = threading.Semaphore(len(bench.wanted(0).now))
    for source in bench.sources.values():
        source.permits = permits
    bench.copier.at(0)
    permits.release(1)
    closing_thread = threading.Thread(target=bench.copier.close)
    closing_thread.start()
    permits.release(1)
    closing_thread.join(60)
    bench.copier.close()
    assert bench.reads() <= len(bench.wanted(0).now) + 2
    assert bench.held() == set()


def test_a_copier_that_never_began_can_be_closed(tmp_path: Path):
    Bench(tmp_path, num_slots=10).copier.close()


# Batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratched")
    write_data(folder, TOKENS, vocab_size=65_536, shard_tokens=900_000)
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> DataManifest:
    return read_data_manifest(folder)


class Mount:
    """Counts what is read, by the thread that reads it; fails on the copier's thread when told to."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.error: OSError | None = None

    def __call__(self, path: Path, offset: int, num_bytes: int) -> bytes:
        copies = threading.current_thread().name == "scratch"
        self.reads["copier" if copies else "trainer"] += 1
        if copies and self.error:
            raise self.error
        return read_at(path, offset, num_bytes)


def batches_of(data: TokenData, said: list[str] | None = None) -> Batches:
    say = (said if said is not None else []).append
    return Batches(data, seed=3, batch_size=8, weights=WEIGHTS, say=say)


@settings(max_examples=12, deadline=None)
@given(
    num_slots=st.sampled_from([1, 2, 3, 5, 100]),
    sequence_length=st.sampled_from([100, 1024, 4999]),
    first=st.integers(0, 10**7),
)
def test_scratch_changes_no_batch(
    tmp_path_factory: pytest.TempPathFactory,
    folder: Path,
    manifest: DataManifest,
    num_slots: int,
    sequence_length: int,
    first: int,
):
    scratch = Scratch(tmp_path_factory.mktemp("scratch"), num_slots * SLOT_BYTES)
    plain = batches_of(TokenData.open(folder, manifest, sequence_length))
    with closing(batches_of(TokenData.open(folder, manifest, sequence_length, scratch))) as scratched:
        for step in (*range(first, first + 20), 0, 7):
            for expected, got in zip(plain.batch(step), scratched.batch(step), strict=True):
                assert (expected == got).all()


def test_with_room_enough_the_trainer_never_reads_the_mount(tmp_path: Path, folder: Path, manifest: DataManifest):
    mount = Mount()
    data = TokenData(folder, manifest, 1000, Scratch(tmp_path, 7 * SLOT_BYTES), read=mount)
    with closing(batches_of(data)) as made:
        for step in range(2000):  # 2 epochs of English and many of Konkani
            made.batch(step)
    assert mount.reads["trainer"] == 0
    pieces = mount.reads["copier"]
    assert 7 <= pieces <= 12, "7 blocks, some in pieces of two shards, once each"


def test_a_block_that_has_changed_is_found_when_it_is_needed(tmp_path: Path):
    write_data(tmp_path, TOKENS, vocab_size=65_536)
    shard = tmp_path / "konkani.train-00000.tokens"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    said: list[str] = []
    data = TokenData.open(tmp_path, read_data_manifest(tmp_path), 1000, Scratch(tmp_path / "scratch", 7 * SLOT_BYTES))
    with closing(batches_of(data, said)) as made:
        first = next(step for step in range(100) if "konkani" in made.batch_languages(step))
        for step in range(first):
            made.batch(step)
        made.settle()
        made.batch(first)
        with pytest.raises(DataError, match=r"konkani.train-00000\.tokens has changed"):
            made.settle()
    assert len(said) == 1


def test_reading_goes_on_when_the_copier_cannot(tmp_path: Path, folder: Path, manifest: DataManifest):
    mount, said = Mount(), list[str]()
    mount.error = OSError(errno.ESTALE, "Stale file handle")
    data = TokenData(folder, manifest, 1000, Scratch(tmp_path, 7 * SLOT_BYTES), read=mount)
    plain = batches_of(TokenData.open(folder, manifest, 1000))
    with closing(batches_of(data, said)) as made:
        for step in range(50):
            assert (made.batch(step)[0] == plain.batch(step)[0]).all()
    assert len(said) == 1
    assert "Stale file handle" in said[0]
    assert mount.reads["trainer"] > 0


def test_a_place_where_no_scratch_can_be_is_said_and_done_without(tmp_path: Path, folder: Path, manifest: DataManifest):
    (tmp_path / "file").write_bytes(b"")
    said: list[str] = []
    data = TokenData.open(folder, manifest, 1000, Scratch(tmp_path / "file", 7 * SLOT_BYTES))
    made = batches_of(data, said)
    assert made.batch(0)[0].shape == (8, 1000)
    made.close()
    assert len(said) == 1
    assert "scratch cannot be made in" in said[0]


def test_a_budget_below_one_block_is_said_and_done_without(tmp_path: Path, folder: Path, manifest: DataManifest):
    said: list[str] = []
    made = batches_of(TokenData.open(folder, manifest, 1000, Scratch(tmp_path, SLOT_BYTES - 1)), said)
    assert made.batch(0)[0].shape == (8, 1000)
    assert said == [
        f"scratch is too small: {SLOT_BYTES - 1} bytes, one block needs {SLOT_BYTES}; reading without scratch, slower"
    ]


def test_batches_can_be_read_when_their_scratch_is_closed(tmp_path: Path, folder: Path, manifest: DataManifest):
    made = batches_of(TokenData.open(folder, manifest, 1000, Scratch(tmp_path, 7 * SLOT_BYTES)))
    before = made.batch(5)
    made.close()
    made.close()
    assert (made.batch(5)[0] == before[0]).all()
