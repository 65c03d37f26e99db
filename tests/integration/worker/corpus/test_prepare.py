import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from state import crash_points
from state.data_manifest import Recipe
from tests.corpora import ALL, MODEL, Listener, encoded, small_corpus, texts, tokens_of, tree, write_lines
from tests.repository import ROOT
from worker.corpus.prepare import prepare


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return small_corpus(tmp_path / "corpus")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_many_units_of_work_leave_no_seam_whoever_does_them(num_workers: int, tmp_path: Path):
    many = [f"document number {number}" for number in range(3000)]
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *texts(*many[:1700]))
    write_lines(tmp_path / "corpus" / "english" / "b.jsonl", *texts(*many[1700:]))
    progress = Listener()
    manifest = prepare(
        [tmp_path / "corpus"], MODEL, tmp_path / "data", ALL, num_workers=num_workers, pack_bytes=10_000, progress=progress
    )
    assert tokens_of(tmp_path / "data", manifest, manifest.languages["english"]) == encoded(*many)
    assert progress.advanced == progress.total == sum(source.num_bytes for source in manifest.sources)


def run_with_little_room(corpus: Path, out: Path, num_bytes: int) -> str:
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\n"
        "from worker.corpus.prepare import prepare\n"
        "from state.errors import UserError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes}))\n"
        "try:\n"
        "    prepare([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(corpus), str(MODEL), str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_disk_that_fills_up_is_said_and_the_same_call_finishes_later(corpus: Path, tmp_path: Path):
    out = tmp_path / "data"
    assert "cannot be written (File too large)" in run_with_little_room(corpus, out, 16)
    assert not out.exists()
    prepare([corpus], MODEL, out)
    prepare([corpus], MODEL, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def in_a_child(act: Callable[[], object]) -> int:
    """Run something in a fork of this process; return its exit status as `os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def die_after(num_effects: int) -> None:
    """Kill this process by SIGKILL after it has changed so many things on the disk."""
    left = num_effects

    def count(_kind: str, _what: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    crash_points.observe(count)


def large_corpus(folder: Path) -> Path:
    for language in ("english", "hindi", "konkani"):
        for part in "ab":
            lines = texts(*[f"{language} {part} {number % 90}" for number in range(120)])
            write_lines(folder / language / f"{part}.jsonl", *lines)
    return folder


def test_killed_at_sixty_random_moments_it_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path):
    corpus = large_corpus(tmp_path / "corpus")
    recipe = Recipe(shard_bytes=1024, max_part_bytes=5000, validation_share=0.05)

    def run(out: Path) -> None:
        prepare([corpus], MODEL, out, recipe, pack_bytes=500)

    run(tmp_path / "whole")
    expected = tree(tmp_path / "whole")
    moments = random.Random(3)
    kills = finished = 0
    while kills < 60 or not finished:
        out = tmp_path / "killed" / f"data-{finished}"
        # From the very first change on the disk to well into the writing of the shards, and through the moving into place.
        most = moments.choice([3, 10, 40, 200])

        def die_within(num_effects: int = moments.randint(1, most), out: Path = out) -> None:
            die_after(num_effects)
            run(out)

        if os.WIFSIGNALED(in_a_child(die_within)):
            kills += 1
            assert not out.exists() or tree(out) == expected  # it is there whole, or not at all
            continue
        assert tree(out) == expected
        assert not list(out.parent.glob(f".{out.name}*"))
        finished += 1
    assert kills >= 60


def test_killed_after_each_change_on_the_disk_the_next_call_finishes(corpus: Path, tmp_path: Path):
    prepare([corpus], MODEL, tmp_path / "whole", ALL)
    expected = tree(tmp_path / "whole")
    for number in itertools.count(1):
        out = tmp_path / "killed" / str(number)

        def die(number: int = number, out: Path = out) -> None:
            die_after(number)
            prepare([corpus], MODEL, out, ALL)

        killed = os.WIFSIGNALED(in_a_child(die))
        prepare([corpus], MODEL, out, ALL)
        assert tree(out) == expected
        assert not list(out.parent.glob(".*"))
        if not killed:
            break
    assert number > 12


def test_workers_of_a_killed_preparation_end_and_the_same_command_finishes(tmp_path: Path):
    lines = texts(*[f"document number {number} with some words in it" for number in range(20_000)])
    write_lines(tmp_path / "corpus" / "english" / "a.jsonl", *lines)
    script = (
        "import sys; from pathlib import Path; from worker.corpus.prepare import prepare\n"
        "if __name__ == '__main__':\n"
        "    prepare([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]), num_workers=2, pack_bytes=20_000)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(script)
    command = [sys.executable, str(program), str(tmp_path / "corpus"), str(MODEL), str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    units = tmp_path / ".data.staging" / "units"
    while not (units.is_dir() and len(list(units.glob("*.unit"))) > 3):
        assert child.poll() is None
    child.kill()
    said, _ = child.communicate()  # ends when the last process that has it open does: the workers have it from the child
    assert said == b""
    manifest = prepare([tmp_path / "corpus"], MODEL, tmp_path / "data", num_workers=1, pack_bytes=20_000)
    assert prepare([tmp_path / "corpus"], MODEL, tmp_path / "whole") == manifest
    assert tree(tmp_path / "data") == tree(tmp_path / "whole")
