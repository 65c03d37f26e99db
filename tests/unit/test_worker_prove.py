from __future__ import annotations

import json
from pathlib import Path

import pytest

from state.errors import DataError, TemporaryError, UserError
from state.layout import AttemptLayout
from tests.sessions import SmallRun
from worker.__main__ import main
from worker.prove import Certificate, Piece, prove


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
    from worker.alive import held_alive

    folder = run.layout.root / "proof" / "straight" / "sessions" / "s001a1"
    folder.mkdir(parents=True)
    with held_alive(AttemptLayout(folder), None), pytest.raises(TemporaryError, match="exit code 3"):
        prove(run.spec(), 3, 1, run.layout.root / "proof")


def test_a_piece_says_which_steps_it_has():
    piece = Piece(first_step=0, last_step=12, state_sha256="a" * 64)
    assert Certificate._span(piece) == f"     0 to     12  sha256 {'a' * 64}"
