from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from safetensors.torch import load_file

from state.architecture import Architecture
from tests.repository import ROOT
from tests.sessions import SmallRun, small_architecture
from worker.__main__ import main

SAMPLE_TOKENIZER = ROOT / "worker" / "corpus" / "sample" / "tokenizer.model"


@pytest.fixture
def tokenizer() -> Path:
    return SAMPLE_TOKENIZER


def command(run: SmallRun, shape: Architecture, tokenizer: Path, **changes: str) -> list[str]:
    path = run.layout.root / "architecture.json"
    path.write_bytes(shape.to_json())
    newest = run.newest()
    assert newest is not None
    options = {
        "--checkpoint-dir": str(run.store.folder(newest.id)),
        "--architecture": str(path),
        "--tokenizer": str(tokenizer),
        "--format": "safetensors",
        "--out": str(run.layout.root / "out"),
        **{f"--{name}": value for name, value in changes.items()},
    }
    return ["export", *(part for pair in options.items() for part in pair)]


def test_a_checkpoint_is_exported_from_its_folder(ram_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).get_piece_size()
    architecture = small_architecture(vocab_size=pieces)
    run = SmallRun(ram_path, vocab_size=pieces)
    assert run.run(run.spec(architecture=architecture, max_steps=1)) == 0
    capsys.readouterr()
    assert main(command(run, architecture, tokenizer)) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert {"model.safetensors", "architecture.json", "tokenizer.model"} <= set(names)
    newest = run.newest()
    assert newest is not None
    exported = load_file(run.layout.root / "out" / "model.safetensors")
    trained = load_file(run.store.folder(newest.id) / "state.safetensors")
    assert all((tensor == trained[f"model.{name}"]).all() for name, tensor in exported.items())


def test_what_cannot_be_exported_is_told(ram_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]):
    run = SmallRun(ram_path)
    assert run.run(run.spec(max_steps=1)) == 0
    good = command(run, small_architecture(), tokenizer)
    assert main(good) == 2
    assert "the weights have 50" in capsys.readouterr().err
    assert main(command(run, small_architecture(), tokenizer, architecture="nowhere.json")) == 2
    assert "nowhere.json cannot be read" in capsys.readouterr().err
    newest = run.newest()
    assert newest is not None
    (run.store.folder(newest.id) / "state.safetensors").write_bytes(b"")
    assert main(good) == 4
    assert "state.safetensors of checkpoint step-00000001-s001a1 has 0 bytes" in capsys.readouterr().err
