from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from state import crash_points, files
from state.errors import CorruptCheckpointError, DataError, TemporaryError
from state.layout import MANIFEST_NAME
from state.manifest import FileEntry, Manifest
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import commit_checkpoint, safetensors, stage_checkpoint

ID = "step-00000010-s001a1"


class Died(BaseException):
    """The process ends here."""


def die_after(num_effects: int, act: Callable[[], object]) -> bool:
    """Do something and die after so many side effects; return whether it came to its end instead."""
    count = 0

    def count_down(kind: crash_points.EffectKind, what: str) -> None:
        nonlocal count
        count += 1
        if count == num_effects:
            raise Died

    crash_points.observe(count_down)
    try:
        act()
    except Died:
        return False
    finally:
        crash_points.observe(None)
    return True


Act = Callable[[DirectoryCheckpointStore], object]


def deaths(root: Path, act: Act, prepare: Act = lambda _store: None) -> Iterator[DirectoryCheckpointStore]:
    """Yield the store as it is after every death of an act, until the act comes to its end."""
    for number in itertools.count(1):
        store = DirectoryCheckpointStore(root / str(number))
        prepare(store)
        if die_after(number, partial(act, store)):
            return
        yield store


def test_a_commit_that_dies_anywhere_leaves_a_whole_checkpoint_or_none_and_can_be_repeated(tmp_path: Path) -> None:
    seen = set()
    for store in deaths(tmp_path, lambda store: commit_checkpoint(store, 10)):
        seen.add(store.ids())
        for name in store.ids():
            store.verify(name)
        commit_checkpoint(store, 10)
        assert store.verify_tensors(ID).step == 10
        store.sweep(lambda _name: True)
        assert [path.name for path in store.folder(ID).parent.iterdir()] == [ID]
    assert seen == {(), (ID,)}


def test_a_commit_that_dies_anywhere_can_be_swept_away(tmp_path: Path) -> None:
    for store in deaths(tmp_path, lambda store: commit_checkpoint(store, 10)):
        if store.ids() == ():
            store.sweep(lambda _name: True)
            assert list(store.folder(ID).parent.iterdir()) == []


def test_a_deletion_that_dies_anywhere_leaves_a_whole_checkpoint_or_none(tmp_path: Path) -> None:
    num_deaths = 0
    for store in deaths(tmp_path, lambda store: store.delete(ID), lambda store: commit_checkpoint(store, 10)):
        num_deaths += 1
        assert store.ids() == ()
        store.sweep(lambda _name: True)
        assert list(store.folder(ID).parent.iterdir()) == []
    assert num_deaths == 2


def test_a_checkpoint_is_deleted_even_when_an_earlier_deletion_was_killed_half_way(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    commit_checkpoint(store, 10)
    assert not die_after(1, lambda: store.delete(ID))
    assert len(list(tmp_path.glob(f".trash-{ID}.*/rank-0.safetensors"))) == 1
    commit_checkpoint(store, 10)
    store.delete(ID)
    assert list(tmp_path.iterdir()) == []


def test_a_quarantine_that_dies_anywhere_leaves_nothing_that_is_taken_for_a_checkpoint(tmp_path: Path) -> None:
    for store in deaths(tmp_path, lambda store: store.quarantine(ID, "why"), lambda store: commit_checkpoint(store, 10)):
        assert store.ids() == ()
        commit_checkpoint(store, 10)
        store.quarantine(ID, "again")
        assert store.ids() == ()


def test_a_manifest_that_the_disk_does_not_give_is_unknown_and_not_corrupt(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    commit_checkpoint(store, 10)
    path = store.folder(ID) / MANIFEST_NAME
    path.unlink()
    path.symlink_to("/proc/self/mem")  # exists, is a file, and reading it is an input/output error
    with pytest.raises(TemporaryError, match=r"manifest\.json of checkpoint .* cannot be read"):
        store.manifest(ID)


def test_a_file_that_the_disk_does_not_give_is_unknown_and_not_corrupt(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path, may_link=True)
    staged, manifest = stage_checkpoint(store, 10)
    unreadable = FileEntry(name="bad-sector", size_bytes=0, sha256="0" * 64)
    (staged / "bad-sector").touch()
    store.commit(staged, manifest.evolve(files=(*manifest.files, unreadable)))
    (store.folder(ID) / "bad-sector").unlink()
    (store.folder(ID) / "bad-sector").symlink_to("/proc/self/mem")
    with pytest.raises(TemporaryError, match=r"bad-sector of checkpoint .* cannot be read"):
        store.verify(ID)


def test_a_folder_where_a_file_should_be_is_a_lost_file(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    commit_checkpoint(store, 10)
    path = store.folder(ID) / MANIFEST_NAME
    path.unlink()
    path.mkdir()
    with pytest.raises(CorruptCheckpointError, match=r"manifest\.json of checkpoint .* is missing"):
        store.manifest(ID)


def committed_with(store: DirectoryCheckpointStore, content: bytes) -> None:
    """Commit a checkpoint whose manifest tells the truth about its files and another story about their tensors."""
    staged, manifest = stage_checkpoint(store, 10)
    path = staged / "rank-1.safetensors"
    path.write_bytes(content)
    files = tuple(
        FileEntry(name=entry.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        if entry.name == path.name
        else entry
        for entry in manifest.files
    )
    store.commit(staged, manifest.evolve(files=files))
    store.verify(ID)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (safetensors({"model.b": ("U8", [2, 2], b"abcX")}), "tensor model.b of .* differs from the manifest"),
        (safetensors({"model.a2": ("U8", [2, 2], b"abcd")}), "tensor model.a2 of .* differs from the manifest"),
        (safetensors({}), "holds 1 tensors"),
        (b"no safetensors at all", "is not a safetensors file"),
    ],
)
def test_verifying_tensor_by_tensor_finds_what_the_files_digests_cannot(tmp_path: Path, content: bytes, complaint: str) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    committed_with(store, content)
    with pytest.raises(CorruptCheckpointError, match=complaint):
        store.verify_tensors(ID)


def test_what_a_reader_took_is_compared_and_the_files_are_not_looked_at_again(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    manifest = commit_checkpoint(store, 10)

    def reader(folder: Path, told: Manifest) -> tuple[FileEntry, ...]:
        for name in told.file_names:  # damaged after it was read: what was taken is right
            (folder / name).write_bytes(bytes((folder / name).stat().st_size))
        return told.files

    assert store.read(ID, reader) == manifest
    with pytest.raises(CorruptCheckpointError, match="has changed"):
        store.verify(ID)


def test_what_a_reader_took_is_refused_when_it_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    commit_checkpoint(store, 10)
    with pytest.raises(CorruptCheckpointError, match=r"rank-0\.safetensors of checkpoint .* has changed"):
        store.read(ID, lambda _, told: [entry.evolve(sha256="0" * 64) for entry in told.files])
    assert store.verify(ID).step == 10


def refuse(_folder: Path, _manifest: Manifest) -> tuple[FileEntry, ...]:
    raise DataError("the tensors do not fit")


def test_a_reader_that_cannot_use_sound_files_says_why(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    commit_checkpoint(store, 10)
    with pytest.raises(DataError, match="do not fit") as caught:
        store.read(ID, refuse)
    assert not isinstance(caught.value, CorruptCheckpointError)


def test_damage_is_told_before_what_it_has_led_to(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    manifest = commit_checkpoint(store, 10)
    path = store.folder(ID) / manifest.file_names[-1]
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptCheckpointError, match="has changed"):
        store.read(ID, refuse)


def test_the_manifest_of_an_expected_checkpoint_must_be_that_one(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    manifest = commit_checkpoint(store, 10)
    assert store.manifest_of(manifest.expected(store.manifest(ID)[1])) == manifest
    with pytest.raises(CorruptCheckpointError, match="which is what was verified before"):
        store.manifest_of(manifest.expected("0" * 64))


def outside_of(root: Path) -> Path:
    """A folder elsewhere, with a file that must stay."""
    outside = root / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    return outside


@pytest.mark.parametrize("place", [ID, f".staging-{ID}", f".trash-{ID}", f".quarantined-{ID}-1"])
@pytest.mark.parametrize("leads", ["to a folder", "nowhere"])
def test_a_link_in_the_place_of_a_folder_is_never_followed(tmp_path: Path, place: str, leads: str) -> None:
    outside = outside_of(tmp_path)
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / place).symlink_to(outside if leads == "to a folder" else tmp_path / "not there")
    store = DirectoryCheckpointStore(root)
    assert store.ids() == ()
    commit_checkpoint(store, 10)
    assert store.verify(ID).step == 10
    store.quarantine(ID, "why")
    commit_checkpoint(store, 10)
    store.delete(ID)
    store.sweep(lambda _name: True)
    assert store.ids() == ()
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"precious": "precious"}
    assert not (tmp_path / "not there").exists()


def test_of_a_link_that_has_a_checkpoints_name_only_the_link_is_removed(tmp_path: Path) -> None:
    outside, root = outside_of(tmp_path), tmp_path / "checkpoints"
    (outside / MANIFEST_NAME).write_text("{}")
    root.mkdir()
    store = DirectoryCheckpointStore(root)
    for remove in (store.delete, lambda name: store.quarantine(name, "why")):
        (root / ID).symlink_to(outside)
        assert store.ids() == ()
        remove(ID)
        assert not (root / ID).exists()
    assert sorted(path.name for path in outside.iterdir()) == [MANIFEST_NAME, "precious"]


@pytest.mark.parametrize("name", [MANIFEST_NAME, "rank-0.safetensors", ""])
def test_a_checkpoint_that_is_not_made_of_files_of_its_own_is_corrupt(tmp_path: Path, name: str) -> None:
    store = DirectoryCheckpointStore(tmp_path / "checkpoints")
    commit_checkpoint(store, 10)
    path = store.folder(ID) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptCheckpointError, match="is a link"):
        store.verify(ID)
    assert DirectoryCheckpointStore(tmp_path / "checkpoints", may_link=True).verify(ID).step == 10


def test_folders_of_other_names_are_no_checkpoints_and_are_left_alone(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    commit_checkpoint(store, 10)
    for name in ("notes", "step-10-s001a1", "lost+found", ".staging-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST_NAME).write_bytes((store.folder(ID) / MANIFEST_NAME).read_bytes())
    assert store.ids() == (ID,)
    store.sweep(lambda _name: True)
    assert len(list(tmp_path.iterdir())) == 5


def copied(source: DirectoryCheckpointStore, store: DirectoryCheckpointStore, before_commit: Callable[[], object]) -> Manifest:
    """Bring a checkpoint from one store into another, as a command does that fetches it."""
    manifest, folder = source.verify(ID), source.folder(ID)
    with store.staged_copy(ID) as staged:
        for entry in manifest.files:
            files.link_or_copy(folder / entry.name, staged / entry.name)
        before_commit()
        return store.commit_copy(staged, manifest, (folder / MANIFEST_NAME).read_bytes())


def test_many_processes_may_bring_one_checkpoint_here_at_once(tmp_path: Path) -> None:
    source, store = DirectoryCheckpointStore(tmp_path / "source"), DirectoryCheckpointStore(tmp_path / "checkpoints")
    made = commit_checkpoint(source, 10)
    for _ in range(5):
        barrier = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            brought = list(pool.map(lambda _, wait=barrier.wait: copied(source, store, wait), range(4)))
        assert brought == [made] * 4
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [ID]
        assert store.verify(ID) == made
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: store.delete(ID), range(4)))
        assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_copy_that_is_being_made_is_not_swept_and_one_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    store = DirectoryCheckpointStore(tmp_path)
    with store.staged_copy(ID) as staged:
        (staged / "rank-0.safetensors").touch()
        store.sweep(lambda _name: True)
        assert (staged / "rank-0.safetensors").exists()
        assert store.ids() == ()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_takes_the_place_of_a_half_committed_one_and_of_a_link(tmp_path: Path) -> None:
    source, store = DirectoryCheckpointStore(tmp_path / "source"), DirectoryCheckpointStore(tmp_path / "checkpoints")
    made, outside = commit_checkpoint(source, 10), outside_of(tmp_path)
    store.folder(ID).mkdir(parents=True)
    (store.folder(ID) / "half").touch()
    assert copied(source, store, lambda: None) == made
    store.delete(ID)
    store.folder(ID).symlink_to(outside)
    assert copied(source, store, lambda: None) == made
    assert (outside / "precious").read_text() == "precious"
    assert store.verify(ID) == made


def test_a_copy_of_another_state_is_refused_and_not_kept(tmp_path: Path) -> None:
    source, store = DirectoryCheckpointStore(tmp_path / "source"), DirectoryCheckpointStore(tmp_path / "checkpoints")
    commit_checkpoint(source, 10)
    first = store.commit(*stage_checkpoint(store, 10, content=b"other"))
    with pytest.raises(DataError, match="trained twice"):
        copied(source, store, lambda: None)
    assert store.verify(ID) == first
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [ID]


def test_a_disk_that_takes_no_copy_says_so(tmp_path: Path) -> None:
    source, store = DirectoryCheckpointStore(tmp_path / "source"), DirectoryCheckpointStore(tmp_path / "checkpoints")
    commit_checkpoint(source, 10)
    with pytest.raises(FileNotFoundError):
        copied(source, store, lambda: files.remove_tree(tmp_path / "checkpoints"))
