import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from state.data_manifest import Recipe
from state.errors import DataError, TemporaryError, UserError
from tests.patience import PATIENCE_S, wait_until
from tests.repository import ROOT
from worker.corpus.progress import Silent
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.tokenizer.tokenizer import load_tokenizer
from worker.tokenizer_training.build_sample import train_sample_tokenizer
from worker.tokenizer_training.options import TrainingOptions
from worker.tokenizer_training.process import RefusedError, train_in_child, train_in_process
from worker.tokenizer_training.train import TrainedTokenizer, train_tokenizer

SMALL = TrainingOptions(vocab_size=600, character_coverage=0.999)


class ProgressReporter(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def write(folder: Path, name: str, texts: list[str]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return folder


def train(
    out: Path, corpus: Path | None = None, options: TrainingOptions = SMALL, recipe: Recipe | None = None
) -> TrainedTokenizer:
    return train_tokenizer([corpus or sample_corpus_dir()], out, options, recipe or Recipe())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedTokenizer:
    return train(tmp_path_factory.mktemp("trained") / "m.model")


def test_training_the_samples_model_again_gives_the_same_bytes():
    assert train_sample_tokenizer() == sample_tokenizer_path().read_bytes()


def test_a_trained_model_has_gemmas_special_ids_and_writes_every_text(trained: TrainedTokenizer):
    tokenizer = load_tokenizer(trained.path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == trained.vocab_size == 600
    for text in ("दर्या आनी  पावस.\n", " 漢字 🐟\t1999", "क्\u200dष"):
        assert tokenizer.processor.decode(tokenizer.processor.encode(text)) == text
    assert len(tokenizer.processor.encode("1999")) >= 4  # digits stay single


def test_what_was_sampled_is_told_per_language(trained: TrainedTokenizer):
    assert list(trained.languages) == ["english", "hindi", "konkani"]
    assert all(language.num_documents > 0 for language in trained.languages.values())
    assert all(language.sampled_bytes >= language.num_bytes * 0.9 for language in trained.languages.values())


def test_the_same_corpus_under_other_file_names_gives_the_same_bytes(tmp_path: Path, trained: TrainedTokenizer):
    for number, file in enumerate(sorted(sample_corpus_dir().rglob("*.jsonl"), reverse=True)):
        language = file.relative_to(sample_corpus_dir()).parts[0]
        lines = file.read_text(encoding="utf-8").splitlines()
        for part in (0, 1):
            target = tmp_path / "corpus" / language / f"{part}-{number}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("\n".join(lines[part::2]), encoding="utf-8")
    again = train(tmp_path / "again.model", tmp_path / "corpus")
    assert again.path.read_bytes() == trained.path.read_bytes()


def test_text_is_cleaned_as_the_recipe_says_before_it_is_learnt(tmp_path: Path):
    corpus = write(tmp_path / "c", "a/a.jsonl", [f"cafe\u0301 word{i % 7}\x07 sea" for i in range(50)] + ["\x01"])
    options = TrainingOptions(vocab_size=280, character_coverage=1.0)
    clean = load_tokenizer(train(tmp_path / "clean.model", corpus, options).path).processor
    raw = load_tokenizer(train(tmp_path / "raw.model", corpus, options, Recipe(nfc=False, strip_control=False)).path).processor
    assert "\x07" not in {clean.id_to_piece(i) for i in range(280)}
    assert "é" in {clean.id_to_piece(i) for i in range(280)}
    assert {"\x07", "\u0301"} <= {raw.id_to_piece(i) for i in range(280)}


def test_a_sentence_with_the_trainers_own_mark_is_learnt_as_well(tmp_path: Path):
    corpus = write(tmp_path / "c", "a/a.jsonl", [f"zebra \u2585 quagga {i}" for i in range(50)])
    model = load_tokenizer(train(tmp_path / "m.model", corpus, TrainingOptions(vocab_size=290)).path)
    assert len(model.processor.encode(" zebra quagga")) < 6


def test_long_documents_are_learnt_whole(tmp_path: Path):
    corpus = write(tmp_path / "c", "a/a.jsonl", ["a b c d e f g h " * 100_000 + "quagga " * 100])
    model = load_tokenizer(train(tmp_path / "m.model", corpus, TrainingOptions(vocab_size=290)).path)
    assert len(model.processor.encode(" quagga")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 65_537}, "at most 65,536, so that a token takes 16 bits"),
        ({"vocab_size": 260}, "the 4 special pieces and the 256 bytes"),
        ({"alpha": 1.5}, "--alpha 1.5 is out of range"),
        ({"character_coverage": 0.5}, "--character-coverage 0.5 is out of range"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, float], message: str
):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "m.model", tmp_path / "missing", replace(SMALL, **options))


def test_a_vocabulary_too_large_for_the_corpus_is_refused_with_the_largest(tmp_path: Path):
    corpus = write(tmp_path / "c", "a/a.jsonl", ["the sea and the rain"] * 9)
    with pytest.raises(UserError, match=r"(?s)--vocab-size 30,000 is too large for this corpus.*at most 2\d\d") as caught:
        train(tmp_path / "m.model", corpus, TrainingOptions(vocab_size=30_000))
    largest = int(caught.value.remedy.split()[1])
    assert train(tmp_path / "m.model", corpus, TrainingOptions(vocab_size=largest)).vocab_size == largest


def test_a_vocabulary_too_small_for_the_characters_is_refused_with_the_smallest(tmp_path: Path):
    with pytest.raises(UserError, match=r"(?s)--vocab-size 262 is too small for this corpus.*at least 3\d\d"):
        train(tmp_path / "m.model", None, TrainingOptions(vocab_size=262))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(tmp_path: Path):
    out = tmp_path / "m.model"
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists") as caught:
        train(out)
    assert "--replace" in caught.value.remedy
    assert out.read_bytes() == b"mine"
    train_tokenizer([sample_corpus_dir()], out, SMALL, Recipe(), replace=True)
    assert load_tokenizer(out).vocab_size == 600


@pytest.mark.parametrize(
    ("out", "message"), [("", "is a folder"), ("gone/m.model", "does not exist"), ("x" * 300, "cannot be written")]
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path, out: str, message: str):
    with pytest.raises(UserError, match=message):
        train(tmp_path / out, tmp_path / "missing")


class FolderThatGoes(Silent):
    """Removes the folder of the model while it is trained."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def say(self, text: str) -> None:
        if text.startswith("training on"):
            self._folder.rmdir()


def test_a_model_that_cannot_be_written_in_the_end_is_told(tmp_path: Path):
    folder = tmp_path / "models"
    folder.mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        train_tokenizer([sample_corpus_dir()], folder / "m.model", SMALL, Recipe(), progress=FolderThatGoes(folder))


def test_a_corpus_without_text_is_told(tmp_path: Path):
    corpus = write(tmp_path / "c", "a/a.jsonl", ["\x01"])
    with pytest.raises(DataError, match="no text to train on"):
        train(tmp_path / "m.model", corpus)


def test_lines_without_text_are_counted_and_many_of_them_refused(tmp_path: Path):
    corpus = write(tmp_path / "c", "a/a.jsonl", [f"the sea and the rain {i}" for i in range(300)])
    (corpus / "notes.pdf").write_bytes(b"?")
    with (corpus / "a" / "a.jsonl").open("a") as file:
        file.write("no json\n")
    talk = ProgressReporter()
    train_tokenizer([corpus], tmp_path / "m.model", TrainingOptions(vocab_size=300), Recipe(), progress=talk)
    assert any("passed over: 1 not JSON" in line for line in talk.lines)
    assert any("not read: notes.pdf" in line for line in talk.lines)
    with (corpus / "a" / "a.jsonl").open("a") as file:
        file.write("no json\n" * 5)
    with pytest.raises(DataError, match="6 of 306 records have no usable text: 6 not JSON"):
        train(tmp_path / "n.model", corpus)
    assert not (tmp_path / "n.model").exists()
    assert (
        train(tmp_path / "n.model", corpus, TrainingOptions(vocab_size=300), Recipe(max_malformed_share=0.05)).vocab_size == 300
    )


def test_what_sentencepiece_refuses_is_told_in_its_words():
    with pytest.raises(RefusedError, match="sentences"):
        train_in_process([], 300, character_coverage=1.0)
    with pytest.raises(RefusedError, match="sentences"):
        train_in_child([], 300, character_coverage=1.0)


def test_a_child_trains_the_same_model():
    texts = [f"the sea {i} and the rain".encode() for i in range(400)]
    assert train_in_child(texts, 300, character_coverage=1.0) == train_in_process(texts, 300, character_coverage=1.0)


def trainers() -> set[int]:
    """Return the child processes of this one that train, or are about to begin."""
    children = {int(child) for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}
    return {child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}


def killing_the_trainer() -> Iterator[bytes]:
    for trainer in wait_until(trainers, "the new process is what it is going to be"):
        os.kill(trainer, signal.SIGKILL)
    yield from [b"the rain " * 1000] * 1000


def test_a_child_that_is_killed_is_told():
    with pytest.raises(TemporaryError, match=r"ended by itself \(exit code -9\)") as caught:
        train_in_child(killing_the_trainer(), 300, character_coverage=1.0)
    assert "--sample-bytes" in caught.value.remedy


def failing() -> Iterator[bytes]:
    yield b"the sea"
    raise KeyboardInterrupt


def test_no_child_is_left_when_the_call_is_interrupted():
    with pytest.raises(KeyboardInterrupt):
        train_in_child(failing(), 300, character_coverage=1.0)
    assert trainers() == set()


def test_ctrl_c_ends_at_once_with_nothing_left_behind(tmp_path: Path):
    corpus = write(tmp_path / "c", "a/a.jsonl", [f"{i * 7919 % 100_003} {i * 104_729 % 1_000_003}" * 20 for i in range(20_000)])
    out = tmp_path / "out" / "m.model"
    out.parent.mkdir()
    command = [sys.executable, "-m", "worker", "tokenizer", "train", "--corpus", str(corpus), "--out", str(out)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "training" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert (stdout, stderr) == ("", "")
    assert list(out.parent.iterdir()) == []
