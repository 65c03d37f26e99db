from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from state import crash_points, files
from state.errors import UserError


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    """What is done while the test runs."""
    done: list[tuple[str, str]] = []
    crash_points.observe(lambda kind, what: done.append((kind, what)))
    yield done
    crash_points.observe(None)


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


def test_a_rename_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    files.rename(tmp_path / "a", tmp_path / "b")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("b", "new")]


def test_what_a_reader_keeps_from_being_replaced_is_tried_again_for_a_while() -> None:
    refusals, slept = iter([True, True, False]), list[float]()

    def act() -> None:
        if next(refusals):
            raise PermissionError

    files.insist(act, (1.0, 2.0, 3.0), slept.append)
    assert slept == [1.0, 2.0]
    with pytest.raises(PermissionError):
        files.insist(refuse, (1.0, 2.0), slept.append)
    assert slept == [1.0, 2.0, 1.0, 2.0]


@pytest.mark.skipif(os.name == "nt", reason="there it is")
def test_on_this_system_nothing_is_tried_twice() -> None:
    slept = list[float]()
    with pytest.raises(PermissionError):
        files.insist(refuse, sleep=slept.append)
    assert slept == []


def refuse() -> None:
    raise PermissionError


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


def test_a_link_in_the_place_of_a_file_is_replaced_and_never_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "source").write_text("new")
    for name, write in {
        "written": lambda path: files.write_atomically(path, b"new"),
        "linked": lambda path: files.link_or_copy(tmp_path / "source", path),
    }.items():
        (tmp_path / name).symlink_to(precious)
        write(tmp_path / name)
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    (tmp_path / "link").symlink_to(tmp_path / "not there")
    assert not files.create_exclusively(tmp_path / "link", b"new")
    assert precious.read_text() == "precious"
    assert not (tmp_path / "not there").exists()


def test_a_link_in_the_place_of_a_folder_of_ours_is_refused(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "not there")
    (tmp_path / "file").touch()
    for name in ("link", "dangling", "file"):
        with pytest.raises(UserError, match="is a link, or a file"):
            files.make_folder(tmp_path / name)


def test_a_temporary_name_is_hidden_recognizable_short_enough_and_never_the_same(tmp_path: Path) -> None:
    names = {files.temporary_beside(tmp_path / "report.json").name for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch(rf"\.report\.json\.{os.getpid()}-[0-9a-f]{{16}}\.part", name) for name in names)
    for long in ("x" * 255, "த" * 85):
        files.write_atomically(tmp_path / long, b"content")
        assert (tmp_path / long).read_bytes() == b"content"


WRITERS: dict[str, Callable[[Path, bytes], object]] = {
    "write": files.write_atomically,
    "create": files.create_exclusively,
    "link": lambda path, content: files.link_or_copy(path.with_name(content.decode()[0]), path),
}


@pytest.mark.parametrize("write", list(WRITERS.values()), ids=list(WRITERS))
def test_many_writers_of_one_file_leave_one_whole_file_and_nothing_else(
    tmp_path: Path, write: Callable[[Path, bytes], object]
) -> None:
    contents = [letter * 100_000 for letter in (b"a", b"b", b"c", b"d")]
    target = tmp_path / "folder" / "file"
    target.parent.mkdir()
    for content in contents:
        target.with_name(content.decode()[0]).write_bytes(content)
    barrier = threading.Barrier(len(contents))

    def at_once(content: bytes) -> None:
        barrier.wait()
        for _ in range(20):
            write(target, content)

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(at_once, contents))
    assert target.read_bytes() in contents
    assert {path.name for path in target.parent.iterdir()} == {"a", "b", "c", "d", "file"}


def test_what_a_killed_writer_left_is_removed_and_what_may_still_be_written_is_not(tmp_path: Path) -> None:
    abandoned, fresh = files.temporary_beside(tmp_path / "a"), files.temporary_beside(tmp_path / "a")
    folder, filling = files.temporary_beside(tmp_path / "b"), files.temporary_beside(tmp_path / "b")
    users, link = tmp_path / ".film.mkv.part", files.temporary_beside(tmp_path / "c")
    long_ago = tmp_path.stat().st_mtime - 3700.0
    for path in (abandoned, fresh, users, folder / "deep" / "x", filling / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    link.symlink_to(tmp_path / "outside")
    for path in (folder / "deep" / "x", folder / "deep", folder, filling, abandoned, users, link):
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    files.remove_abandoned(tmp_path)
    assert set(tmp_path.iterdir()) == {fresh, filling, users, tmp_path / "outside"}
    assert (tmp_path / "outside" / "precious").exists()
    files.remove_abandoned(tmp_path / "not there")


def test_two_may_remove_one_folder_at_once(tmp_path: Path) -> None:
    for _ in range(20):
        folder = tmp_path / "folder"
        for number in range(50):
            (folder / str(number)).mkdir(parents=True)
        barrier = threading.Barrier(2)

        def at_once(folder: Path = folder, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            files.remove_tree(folder)

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(at_once), pool.submit(at_once)]:
                done.result()
        assert list(tmp_path.iterdir()) == []
