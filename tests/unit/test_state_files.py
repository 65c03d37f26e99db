from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from state import effects, files


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    """What is done while the test runs."""
    done: list[tuple[str, str]] = []
    effects.observe(lambda kind, what: done.append((kind, what)))
    yield done
    effects.observe(None)


def test_a_write_replaces_the_whole_content_and_leaves_nothing_else(tmp_path: Path, heard: list[tuple[str, str]]) -> None:
    path = tmp_path / "a"
    files.write_atomically(path, b"long old content")
    files.write_atomically(path, b"new", durable=False)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert heard == [("write", "a"), ("write", "a")]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        files.write_atomically(path, b"new")
    assert path.is_dir()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        files.write_atomically(tmp_path / "none" / "a", b"new")


def test_only_the_first_exclusive_write_wins(tmp_path: Path, heard: list[tuple[str, str]]) -> None:
    path = tmp_path / "a"
    assert files.create_exclusively(path, b"first")
    assert not files.create_exclusively(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
    assert heard == [("write", "a")]


def test_a_rename_moves_within_and_between_folders(tmp_path: Path, heard: list[tuple[str, str]]) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_text("x")
    files.rename(tmp_path / "a", tmp_path / "b")
    files.rename(tmp_path / "b", tmp_path / "inner" / "c")
    assert (tmp_path / "inner" / "c").read_text() == "x"
    assert heard == [("rename", "b"), ("rename", "c")]


def test_removing_takes_files_folders_and_links_and_does_not_mind_what_is_not_there(
    tmp_path: Path, heard: list[tuple[str, str]]
) -> None:
    kept = tmp_path / "kept"
    (kept / "deep").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(kept)
    for name in ("file", "folder", "link", "nothing"):
        files.remove_tree(tmp_path / name)
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "deep").exists()
    assert [kind for kind, _ in heard] == ["remove"] * 4


def test_what_is_forced_to_the_disk_stays_as_it_is(tmp_path: Path, heard: list[tuple[str, str]]) -> None:
    (tmp_path / "a").write_text("x")
    files.fsync_file(tmp_path / "a")
    files.fsync_dir(tmp_path)
    assert heard == [("write", "a")]
    with pytest.raises(FileNotFoundError):
        files.fsync_file(tmp_path / "none")


@pytest.mark.parametrize("size", [0, 1, 5 * 1024 * 1024])
def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_of_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_free_room_is_known_even_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path) > 0
    assert files.free_bytes(tmp_path / "not" / "yet") > 0


def test_a_second_name_is_the_same_file_and_takes_the_place_of_another(tmp_path: Path):
    (tmp_path / "a").write_text("content")
    (tmp_path / "b").write_text("in its place")
    files.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")


def test_a_second_name_on_another_disk_is_a_copy(tmp_path: Path, ram_path: Path):
    if tmp_path.stat().st_dev == ram_path.stat().st_dev:
        pytest.skip("there is one disk only")
    (tmp_path / "a").write_text("content")
    files.link_or_copy(tmp_path / "a", ram_path / "b")
    assert (ram_path / "b").read_text() == "content"
