from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from state.data_manifest import DataManifest, Recipe
from state.errors import DataError, TemporaryError
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import data_slug
from state.kaggle.records import OutputFile
from state.manifest import Manifest
from state.spec import ExpectedCheckpoint
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import commit_checkpoint
from tests.kaggle_jobs import mount_checkpoint, mount_data
from tests.sessions import make_data
from worker.corpus.parts import PART_NAME, describe_parts, lay_out
from worker.data.batches import TokenData, read_data_manifest
from worker.kaggle.inputs import Mounts, build_data_folder, download_checkpoint, find_checkpoint

PLACE = CheckpointPlace(kind="dataset", owner="somebody", slug="gemma-orch-tamil-s001a1", version=3)
OUTPUT = CheckpointPlace(kind="output", owner="somebody", slug="gemma-orch-tamil-s001a1", version=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_parts(folder: Path) -> DataManifest:
    """Data laid out in parts, a shard a part."""
    manifest = make_data(folder)
    recipe = Recipe(max_part_bytes=max(manifest.files.values()) + 1_000)
    languages = lay_out(folder, manifest.languages, recipe, manifest.token_bytes)
    fields = {
        name: getattr(manifest, name) for name in DataManifest.model_fields if name not in ("data_sha256", "schema_version")
    }
    laid_out = DataManifest.sealed(**{**fields, "languages": languages, "recipe": recipe})
    describe_parts(folder, laid_out)
    (folder / "data.json").write_bytes(laid_out.to_json())
    return laid_out


def mount_parts(folder: Path, root: Path, manifest: DataManifest, *, named: bool = True) -> list[Path]:
    """Mount each part as a dataset of its own, and the manifest as another one."""
    sources = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    names = [data_slug(manifest.data_sha256, number) if named else f"elsewhere-{number}" for number in range(len(sources) + 1)]
    mounts = [root / name for name in names]
    for source, mount in zip(sources, mounts[1:], strict=True):
        shutil.copytree(source, mount)
    mounts[0].mkdir()
    shutil.copyfile(folder / "data.json", mounts[0] / "data.json")
    return mounts


class Account:
    """An account that serves the files of a folder as whatever is asked for."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self.prefix = prefix
        self.asked: list[tuple[str, int, str, str]] = []

    def download(self, slug: str, version: int, name: str, target: Path, *, owner: str) -> str:
        self.asked.append((slug, version, name, owner))
        return self._copy(name, target)

    def session_outputs(self, slug: str, version: int) -> tuple[tuple[OutputFile, ...], str]:
        return tuple(OutputFile(self.prefix + path.name, path.name) for path in sorted(self.folder.iterdir())), ""

    def download_output(self, file: OutputFile, target: Path) -> str:
        return self._copy(file.url, target)

    def _copy(self, name: str, target: Path) -> str:
        shutil.copyfile(self.folder / name, target)
        return hashlib.sha256(target.read_bytes()).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> DirectoryCheckpointStore:
    return DirectoryCheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def made(store: DirectoryCheckpointStore) -> Manifest:
    return commit_checkpoint(store, 20)


@pytest.fixture
def expected(store: DirectoryCheckpointStore, made: Manifest) -> ExpectedCheckpoint:
    return made.expected(store.manifest(made.id)[1])


def test_a_data_folder_is_found_wherever_it_is_mounted(tmp_path: Path, root: Path):
    manifest = make_data(tmp_path / "data")
    (tmp_path / "data" / "tokenizer.model").write_bytes(b"pieces")
    mount_data(tmp_path / "data", root, manifest)
    build_data_folder(Mounts(root), manifest.data_sha256, tmp_path / "built")
    assert contents(tmp_path / "built") == contents(tmp_path / "data")
    TokenData.open(tmp_path / "built", read_data_manifest(tmp_path / "built"), 8)


@pytest.mark.parametrize("named", [True, False])
def test_data_in_parts_is_put_together_from_their_mounts(tmp_path: Path, root: Path, named: bool):
    manifest = in_parts(tmp_path / "data")
    mount_parts(tmp_path / "data", root, manifest, named=named)
    build_data_folder(Mounts(root), manifest.data_sha256, tmp_path / "built")
    built, whole = contents(tmp_path / "built"), contents(tmp_path / "data")
    assert built == {name: data for name, data in whole.items() if not name.endswith(PART_NAME)}
    TokenData.open(tmp_path / "built", read_data_manifest(tmp_path / "built"), 8)


def test_shards_of_another_version_with_the_same_names_are_not_taken(tmp_path: Path, root: Path):
    first, second = in_parts(tmp_path / "one"), make_data(tmp_path / "two", seed=2)
    mount_parts(tmp_path / "one", root, first, named=False)
    mount_data(tmp_path / "two", root, second)
    for manifest, source in ((first, "one"), (second, "two")):
        build_data_folder(Mounts(root), manifest.data_sha256, tmp_path / "built")
        built = contents(tmp_path / "built")
        assert {name: built[name] for name in manifest.files} == {
            name: (tmp_path / source / name).read_bytes() for name in manifest.files
        }


def test_a_missing_shard_is_named(tmp_path: Path, root: Path):
    manifest = make_data(tmp_path / "data")
    mount = mount_data(tmp_path / "data", root, manifest)
    shard = next(name for name in manifest.files if name.endswith(".tokens"))
    (mount / shard).write_bytes(b"short")
    with pytest.raises(DataError, match=f"is not mounted: {shard} of it cannot be found") as caught:
        build_data_folder(Mounts(root), manifest.data_sha256, tmp_path / "built")
    assert "gemma-orch upload" in caught.value.remedy
    assert data_slug(manifest.data_sha256, 0) in caught.value.expected


def test_many_missing_shards_are_counted(tmp_path: Path, root: Path):
    manifest = make_data(tmp_path / "data")
    mount = mount_data(tmp_path / "data", root, manifest)
    for name in manifest.files:
        (mount / name).unlink()
    with pytest.raises(DataError, match=f"and {len(manifest.files) - 3} more of it"):
        build_data_folder(Mounts(root), manifest.data_sha256, tmp_path / "built")


def test_other_peoples_data_is_no_data(tmp_path: Path, root: Path):
    (root / "data.json").write_text("{}")
    mount_data(tmp_path / "other", root, make_data(tmp_path / "other", seed=2))
    with pytest.raises(DataError, match=r"none of the 2 files data\.json below .* has its digest"):
        build_data_folder(Mounts(root), "0" * 64, tmp_path / "built")


def test_a_part_that_makes_no_sense_is_no_part(tmp_path: Path, root: Path):
    manifest = in_parts(tmp_path / "data")
    mounts = mount_parts(tmp_path / "data", root, manifest, named=False)
    (mounts[1] / PART_NAME).write_text("{}")
    build_data_folder(Mounts(root), manifest.data_sha256, tmp_path / "built")


@pytest.mark.parametrize("place", ["datasets/tester/some-name", "some-name", "notebooks/tester/some-name/checkpoint"])
def test_a_mounted_checkpoint_is_found(
    tmp_path: Path, root: Path, store: DirectoryCheckpointStore, expected: ExpectedCheckpoint, place: str
):
    mount_checkpoint(store, expected.id, root / place)
    found = DirectoryCheckpointStore(tmp_path / "found", may_link=True)
    assert find_checkpoint(Mounts(root), expected, found.folder(expected.id))
    assert found.verify(expected.id, expected) == store.verify(expected.id)


def test_a_checkpoint_with_another_manifest_is_not_the_expected_one(
    tmp_path: Path, root: Path, store: DirectoryCheckpointStore, expected: ExpectedCheckpoint
):
    mount_checkpoint(store, expected.id, root / "stale")
    other = expected.evolve(manifest_sha256="0" * 64)
    assert not find_checkpoint(Mounts(root), other, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_a_checkpoint_without_all_its_files_is_not_there(
    tmp_path: Path, root: Path, store: DirectoryCheckpointStore, expected: ExpectedCheckpoint
):
    mount = mount_checkpoint(store, expected.id, root / "mount")
    (mount / f"{expected.id}.rank-1.safetensors").unlink()
    assert not find_checkpoint(Mounts(root), expected, tmp_path / "found")


@pytest.mark.parametrize("place", [PLACE, OUTPUT])
def test_a_checkpoint_is_fetched_from_the_version_it_lies_in(
    tmp_path: Path, store: DirectoryCheckpointStore, expected: ExpectedCheckpoint, place: CheckpointPlace
):
    account = Account(mount_checkpoint(store, expected.id, tmp_path / "kept"), prefix="checkpoint/")
    found, said = DirectoryCheckpointStore(tmp_path / "found"), list[str]()
    download_checkpoint(account, place, expected, found.folder(expected.id), said.append)
    assert found.verify(expected.id, expected) == store.verify(expected.id)
    assert len(said) == 2
    if place.kind == "dataset":
        assert account.asked[0] == (place.slug, 3, f"{expected.id}.manifest.json", "somebody")


def test_another_manifest_is_not_fetched(tmp_path: Path, store: DirectoryCheckpointStore, expected: ExpectedCheckpoint):
    account = Account(mount_checkpoint(store, expected.id, tmp_path / "kept"))
    other = expected.evolve(manifest_sha256="0" * 64)
    with pytest.raises(TemporaryError, match="version 3 has another manifest"):
        download_checkpoint(account, PLACE, other, tmp_path / "found", lambda _: None)
    assert DirectoryCheckpointStore(tmp_path).ids() == ()


def test_a_damaged_download_is_tried_again_and_is_no_corrupt_checkpoint(
    tmp_path: Path, store: DirectoryCheckpointStore, expected: ExpectedCheckpoint
):
    kept = mount_checkpoint(store, expected.id, tmp_path / "kept")
    (damaged,) = [path for path in kept.rglob("*") if path.name.endswith("rank-1.safetensors")]
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with pytest.raises(TemporaryError, match=r"the download of rank-1\.safetensors of .* is damaged"):
        download_checkpoint(Account(kept), PLACE, expected, tmp_path / "found", lambda _: None)
    assert DirectoryCheckpointStore(tmp_path).ids() == ()


def test_an_output_without_the_checkpoint_is_told(tmp_path: Path, expected: ExpectedCheckpoint):
    (tmp_path / "kept").mkdir()
    with pytest.raises(TemporaryError, match=r"the output of somebody/.* has no "):
        download_checkpoint(Account(tmp_path / "kept"), OUTPUT, expected, tmp_path / "found", lambda _: None)
