from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from orchestrator.worker_process.prepare import WorkerPreparer
from state.data_manifest import DataManifest
from state.errors import DataError, TemporaryError, UserError
from state.layout import HomeLayout
from state.spec import DataSpec, RunSpec
from tests.factories import RUN, run_spec
from tests.repository import ROOT
from tests.token_data import write_data

TOKENS = {"english": 3000, "konkani": 100}
_WORKER = """
import sys, time
out = sys.argv[sys.argv.index("--out") + 1]
sys.path.insert(0, {root!r})
{act}
"""


def made(folder: Path, **tokens: int) -> DataManifest:
    return write_data(folder, {name: np.arange(count) for name, count in (tokens or TOKENS).items()})


def worker(tmp_path: Path, act: str) -> list[str]:
    """A command that stands in for `python -m worker prepare`."""
    script = tmp_path / "worker.py"
    script.write_text(_WORKER.format(root=str(ROOT), act=act))
    return [sys.executable, str(script)]


def prepare(tmp_path: Path, act: str, say: list[str] | None = None, **data: object) -> object:
    preparer = WorkerPreparer(HomeLayout(tmp_path), (say if say is not None else []).append, worker(tmp_path, act))
    return preparer(spec_of(**data), lambda: None)


def spec_of(**data: object) -> RunSpec:
    return run_spec(data={"sequence_length": 8, **data})


WRITES = "from tests.integration.orchestrator.worker_process.test_prepare import made; from pathlib import Path; made(Path(out))"


def test_what_the_worker_prepares_is_recorded_with_its_shares(tmp_path: Path) -> None:
    said: list[str] = []
    record = prepare(tmp_path, f"{WRITES}; sys.stderr.write('2 documents left out\\n')", said)
    manifest = DataManifest.from_json((tmp_path / "runs" / RUN / "data" / "data.json").read_bytes(), "")
    assert (record.sha256, record.tokenizer_sha256) == (manifest.data_sha256, manifest.tokenizer_sha256)
    assert (record.folder, record.first_step, record.tokens) == ("data", 0, TOKENS)
    assert sum(record.mixture.values()) == pytest.approx(1.0)
    assert said[0] == "2 documents left out"
    assert said[1].startswith("share of the sequences: english 91.5")


def test_the_worker_is_told_the_corpus_the_tokenizer_and_the_versions_folder(tmp_path: Path) -> None:
    command = worker(tmp_path, f"{WRITES}; sys.stderr.write(' '.join(sys.argv[1:]) + '\\n')")
    said: list[str] = []
    preparer = WorkerPreparer(HomeLayout(tmp_path), said.append, command)
    record = preparer(spec_of(corpus=["a", "b"], tokenizer="t.model"), lambda: None, version=2, first_step=7)
    folder = tmp_path / "runs" / RUN / "data-2"
    assert said[0] == f"--corpus a --corpus b --tokenizer t.model --out {folder} --replace"
    assert (record.folder, record.first_step, record.corpus) == ("data-2", 7, ("a", "b"))
    assert preparer.has_data(RUN, record)


def test_progress_is_passed_on_while_the_worker_is_still_at_it(tmp_path: Path) -> None:
    """The worker waits for a file that is made when its first line arrives."""
    heard = tmp_path / "heard"
    act = f"""
import os
sys.stderr.write("encoding: 10 %\\n"); sys.stderr.flush()
while not os.path.exists({str(heard)!r}): time.sleep(0.01)
{WRITES}
"""
    preparer = WorkerPreparer(HomeLayout(tmp_path), lambda text: heard.touch(), worker(tmp_path, act))
    preparer(spec_of(), lambda: None)
    assert heard.exists()


@pytest.mark.parametrize(("code", "error"), [(2, UserError), (3, TemporaryError), (4, DataError), (1, TemporaryError)])
def test_a_worker_that_fails_gives_its_last_words_as_the_reason(tmp_path: Path, code: int, error: type) -> None:
    said: list[str] = []
    act = f"sys.stderr.write('the corpus is empty\\nNext: put text into it\\n'); sys.exit({code})"
    with pytest.raises(error, match="the corpus is empty\nNext: put text into it"):
        prepare(tmp_path, act, said)
    assert said == []


def test_a_worker_that_ends_long_after_its_last_words_is_still_understood(tmp_path: Path) -> None:
    said: list[str] = []
    act = "sys.stderr.write('the disk is full\\n'); sys.stderr.flush(); time.sleep(1.2); sys.exit(2)"
    with pytest.raises(UserError, match="the disk is full"):
        prepare(tmp_path, act, said)
    assert said == ["the disk is full"]


def test_a_worker_that_says_nothing_is_known_by_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="failed with exit code 9"):
        prepare(tmp_path, "sys.exit(9)")


def test_a_child_of_the_worker_that_holds_its_stream_open_does_not_hold_us(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    act = f"""
import subprocess
{WRITES}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pid_file)!r}, "w").write(str(child.pid))
"""
    prepare(tmp_path, act)
    os.kill(int(pid_file.read_text()), 9)  # it still lives


def test_the_worker_does_not_outlive_a_preparation_that_is_broken_off(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    act = f"""
import os
open({str(pid_file)!r}, "w").write(str(os.getpid()))
sys.stderr.write("encoding\\n"); sys.stderr.flush()
time.sleep(60)
"""

    def interrupted(_text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WorkerPreparer(HomeLayout(tmp_path), interrupted, worker(tmp_path, act))(spec_of(), lambda: None)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_folder_that_is_made_already_is_taken_as_it_is(tmp_path: Path) -> None:
    manifest = made(tmp_path / "tokens")
    preparer = WorkerPreparer(HomeLayout(tmp_path), lambda _: None, ["no such command"])
    record = preparer(spec_of(prepared=str(tmp_path / "tokens")), lambda: None)
    assert (record.folder, record.sha256) == (str(tmp_path / "tokens"), manifest.data_sha256)
    assert not (tmp_path / "runs").exists()
    assert preparer.has_data(RUN, record)


def test_a_folder_that_is_no_data_folder_is_the_users_error(tmp_path: Path) -> None:
    preparer = WorkerPreparer(HomeLayout(tmp_path), lambda _: None)
    with pytest.raises(UserError, match="data folder is invalid"):
        preparer(spec_of(prepared=str(tmp_path / "nothing")), lambda: None)


@pytest.mark.parametrize("harm", ["shorter", "gone"])
def test_every_file_of_a_prepared_folder_must_have_its_size(tmp_path: Path, harm: str) -> None:
    manifest = made(tmp_path / "tokens")
    preparer = WorkerPreparer(HomeLayout(tmp_path), lambda _: None)
    spec = spec_of(prepared=str(tmp_path / "tokens"))
    record = preparer(spec, lambda: None)
    wrong = sorted(manifest.files)[0]
    if harm == "shorter":
        (tmp_path / "tokens" / wrong).write_bytes(b"")
    else:
        (tmp_path / "tokens" / wrong).unlink()
    with pytest.raises(DataError, match=f"missing or has the wrong size: .*{wrong}"):
        preparer(spec, lambda: None)
    assert not preparer.has_data(RUN, record)


def test_data_that_is_other_data_or_nowhere_is_not_the_runs(tmp_path: Path) -> None:
    made(tmp_path / "tokens")
    preparer = WorkerPreparer(HomeLayout(tmp_path), lambda _: None)
    record = preparer(spec_of(prepared=str(tmp_path / "tokens")), lambda: None)
    assert not preparer.has_data(RUN, record.evolve(sha256="0" * 64))
    assert not preparer.has_data(RUN, record.evolve(folder="data"))
    (tmp_path / "tokens" / "data.json").write_text("{}")
    assert not preparer.has_data(RUN, record)


def test_unimax_counts_the_tokens_of_the_steps_that_read_the_version(tmp_path: Path) -> None:
    made(tmp_path / "tokens")
    said: list[str] = []
    preparer = WorkerPreparer(HomeLayout(tmp_path), said.append)
    data = DataSpec(prepared=str(tmp_path / "tokens"), sequence_length=8, mixing="unimax", max_epochs=4.0)
    spec = run_spec(data=data, total_steps=100)  # of 8 sequences of 8 tokens
    # 1600 tokens for the last 25 steps: Konkani's even part, 800, is more than four times its 100 tokens.
    assert preparer(spec, lambda: None, first_step=75).mixture == pytest.approx({"english": 0.75, "konkani": 0.25})
    assert preparer(spec, lambda: None).mixture == pytest.approx({"english": 1 - 400 / 6400, "konkani": 400 / 6400})
    assert not any("more than" in text for text in said)


def test_unimax_says_when_there_is_too_little_text_for_its_cap(tmp_path: Path) -> None:
    made(tmp_path / "tokens")
    said: list[str] = []
    data = DataSpec(prepared=str(tmp_path / "tokens"), sequence_length=8, mixing="unimax", max_epochs=2.0)
    record = WorkerPreparer(HomeLayout(tmp_path), said.append)(run_spec(data=data, total_steps=1000), lambda: None)
    assert record.mixture == pytest.approx({"english": 3000 / 3100, "konkani": 100 / 3100})
    assert "more than 2 epochs of all text" in said[0]


def test_too_little_text_for_one_sequence_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "tokens", english=3000, konkani=8)
    with pytest.raises(UserError, match=r"konkani \(8 tokens\)"):
        WorkerPreparer(HomeLayout(tmp_path), lambda _: None)(spec_of(prepared=str(tmp_path / "tokens")), lambda: None)
