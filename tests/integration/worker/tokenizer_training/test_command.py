import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import ROOT
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.tokenizer.tokenizer import load_tokenizer
from worker.tokenizer_training.command import main

CORPUS, MODEL = str(sample_corpus_dir()), str(sample_tokenizer_path())


def test_train_writes_a_model_and_tells_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "m.model"
    options = ["--vocab-size", "500", "--character-coverage", "0.99", "--alpha", "0.5", "--sample-bytes", "1MB"]
    assert main(["train", "--corpus", CORPUS, "--out", str(out), *options]) == 0
    assert load_tokenizer(out).vocab_size == 500
    said = capsys.readouterr()
    assert said.out == ""
    assert f"Next: gemma-orch tokenizer report {out} --corpus {CORPUS}" in said.err
    assert "konkani" in said.err


def test_a_closed_terminal_gets_plain_lines(tmp_path: Path):
    command = [sys.executable, "-m", "worker", "tokenizer", "train", "--corpus", CORPUS, "--vocab-size", "500"]
    answer = subprocess.run(
        [*command, "--character-coverage", "0.99", "--out", str(tmp_path / "m.model")],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "COLUMNS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stdout) == (0, "")
    assert "\x1b" not in answer.stderr
    assert answer.stderr.splitlines()[0].startswith("training on a sample of")
    assert "trainer_interface" not in answer.stderr  # SentencePiece's own log
