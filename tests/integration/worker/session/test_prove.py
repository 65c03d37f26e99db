from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from state.errors import DataError, TemporaryError, UserError
from state.layout import AttemptLayout, RunLayout
from state.report import Heartbeat, Outcome, Phase, SessionReport
from tests.patience import PATIENCE_S, wait_until
from tests.repository import ROOT
from tests.sessions import SmallRun
from worker.__main__ import main
from worker.session.prove import Certificate, Piece, prove


@pytest.fixture
def run(ram_path: Path) -> SmallRun:
    return SmallRun(ram_path)


def test_a_proof_ends_with_the_digest_of_both_states(run: SmallRun, capsys: pytest.CaptureFixture[str]):
    spec = run.write(run.spec())
    arguments = ["prove", "--spec", str(spec), "--steps", "5", "--pieces", "2", "--work-dir", str(run.layout.root / "proof")]
    assert main([*arguments, "--json"]) == 0
    certificate = Certificate.from_json(capsys.readouterr().out, "certificate")
    assert certificate.identical
    assert certificate.first_difference is None
    assert [(piece.first_step, piece.last_step) for piece in certificate.pieces] == [(0, 2), (2, 5)]
    assert certificate.pieces[-1].state_sha256 == certificate.straight.state_sha256
    assert str(certificate).splitlines()[-1] == f"identical: sha256 {certificate.straight.state_sha256}"
    # The folder is left behind, and nothing in it is done twice: what has ended well says so.
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{certificate}\n"
    # A state that differs is found, tensor by tensor.
    store = run.layout.root / "proof" / "pieces" / "checkpoints"
    manifest = store / "step-00000005-s002a1" / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["tensors"][3]["sha256"] = changed["state_sha256"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    assert main(arguments) == 4
    assert f"different: the first difference is tensor {changed['tensors'][3]['name']}" in capsys.readouterr().out


def test_every_piece_is_told_as_it_ends(run: SmallRun):
    said: list[str] = []
    certificate = prove(run.spec(), 2, 1, run.layout.root / "proof", say=said.append)
    digest = certificate.straight.state_sha256[:12]
    assert [line.rpartition(", ")[0] for line in said] == [
        f"straight, session 1 of 1: steps 0 to 2, sha256 {digest}",
        f"pieces, session 1 of 1: steps 0 to 2, sha256 {digest}",
    ]


@pytest.mark.parametrize("interrupt", [os.kill, os.killpg], ids=["the proof alone", "as a terminal does, all of them"])
def test_an_interrupted_proof_leaves_no_session_running_and_no_traceback(run: SmallRun, interrupt: Callable[[int, int], None]):
    spec, work_dir = run.write(run.spec()), run.layout.root / "proof"
    straight = RunLayout(work_dir / "straight").attempt(1, 1)
    arguments = ["--spec", str(spec), "--steps", "100000", "--pieces", "1", "--work-dir", str(work_dir)]
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "prove", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        wait_until(lambda: is_training(straight), process=process)
        interrupt(process.pid, signal.SIGINT)
        said = process.communicate(timeout=PATIENCE_S)[0].decode()
    assert (process.returncode, said) == (130, "")
    assert SessionReport.from_json(straight.report.read_bytes(), "report").outcome is Outcome.STOPPED
    with pytest.raises(ProcessLookupError):
        os.kill(Heartbeat.from_json(straight.heartbeat.read_bytes(), "heartbeat").pid, 0)


def is_training(layout: AttemptLayout) -> bool:
    if not layout.heartbeat.exists():
        return False
    return Heartbeat.from_json(layout.heartbeat.read_bytes(), "heartbeat").phase is Phase.TRAINING


@pytest.mark.parametrize("pieces", [0, 4])
def test_steps_cannot_be_cut_finer_than_they_are(run: SmallRun, pieces: int):
    with pytest.raises(UserError, match=f"3 steps cannot be cut into {pieces} pieces"):
        prove(run.spec(), 3, pieces, run.layout.root / "proof")


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"data_sha256": "0" * 64}, UserError), ({"data_dir": "nowhere"}, DataError)],
)
def test_a_session_that_fails_fails_the_proof_with_its_reason(run: SmallRun, changes: dict[str, object], error: type):
    with pytest.raises(error, match="session 1 of the proof ended with exit code"):
        prove(run.spec(**changes), 3, 1, run.layout.root / "proof")


def test_a_proof_that_runs_already_is_not_run_twice(run: SmallRun):
    from worker.session.lock import held_alive

    folder = run.layout.root / "proof" / "straight" / "sessions" / "s001a1"
    folder.mkdir(parents=True)
    with held_alive(AttemptLayout(folder), None), pytest.raises(TemporaryError, match="exit code 3"):
        prove(run.spec(), 3, 1, run.layout.root / "proof")


def test_a_piece_says_which_steps_it_has():
    piece = Piece(first_step=0, last_step=12, state_sha256="a" * 64)
    assert Certificate._span(piece) == f"     0 to     12  sha256 {'a' * 64}"


def test_a_worker_of_the_users_is_not_run_as_a_session_of_the_proof(run: SmallRun, tmp_path: Path):
    (tmp_path / "worker.py").write_text("raise SystemExit('not ours')")
    spec, work = run.write(run.spec()), tmp_path / "proof"
    options = f"prove --steps 2 --pieces 2 --spec {spec} --work-dir {work}".split()
    result = subprocess.run(
        [sys.executable, "-P", "-m", "worker", *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
