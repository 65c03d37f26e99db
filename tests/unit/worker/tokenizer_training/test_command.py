import io
import json
from pathlib import Path

import pytest
import sentencepiece

from state.errors import DataError, UserError
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.tokenizer_training.command import main

CORPUS, MODEL = str(sample_corpus_dir()), str(sample_tokenizer_path())


def test_report_prints_a_table_on_stdout(capsys: pytest.CaptureFixture[str]):
    assert main(["report", MODEL, "--corpus", CORPUS]) == 0
    said = capsys.readouterr()
    rows = said.out.splitlines()
    assert rows[0].split()[:3] == ["language", "documents", "text"]
    assert [row.split()[0] for row in rows[1:]] == ["english", "hindi", "konkani"]
    assert all("exact" in row for row in rows[1:])
    assert "looked at all text" in said.err


def test_report_prints_json_on_stdout(capsys: pytest.CaptureFixture[str]):
    assert main(["report", MODEL, "--corpus", CORPUS, "--json", "--max-bytes", "2kB"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["is_sample"] is True
    assert "the beginning of each file, 2kB a language (--all: everything)" in said.err
    assert main(["report", MODEL, "--corpus", CORPUS, "--json", "--all"]) == 0
    assert json.loads(capsys.readouterr().out)["is_sample"] is False


def test_report_tells_what_did_not_come_back_and_what_was_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jsonl").write_text('{"text": "the\\u2581sea"}\n{}\n')
    assert main(["report", MODEL, "--corpus", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "1 differ" in said.out
    assert "a: a.jsonl, line 1: 'the▁sea' came back as 'the sea'" in said.err
    assert "passed over: 1 no text field" in said.err


def test_check_says_with_its_exit_code_whether_a_model_is_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", MODEL]) == 0
    assert "usable" in capsys.readouterr().out
    assert main(["check", MODEL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_usable"] is True
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the sea"] * 3), model_writer=model, model_type="char", vocab_size=9, eos_id=-1, minloglevel=2
    )
    (tmp_path / "m.model").write_bytes(model.getvalue())
    assert main(["check", str(tmp_path / "m.model")]) == 2
    assert "not usable" in capsys.readouterr().out


def test_options_reach_the_reading(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"content": "the sea", "lang": "en"}\n')
    options = ["--text-field", "content", "--language-field", "lang", "--max-document-size", "1MB"]
    assert main(["report", MODEL, "--corpus", str(tmp_path), *options]) == 0
    with pytest.raises(DataError, match="no usable text"):
        main(["report", MODEL, "--corpus", str(tmp_path)])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_verb_the_verbs_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 0
    assert "train" in capsys.readouterr().out


def test_an_unknown_verb_says_which_was_meant():
    with pytest.raises(UserError, match="there is no verb tokenizer trian") as caught:
        main(["trian"])
    assert "train" in caught.value.remedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "m.model"], "--corpus"),
        (["report", MODEL], "--corpus"),
        (["check"], "FILE"),
        (["train", "--corpus", "c", "--out", "m.model", "--vocab", "1"], "there is no option --vocab"),
        (["train", "--corpus", "c", "--out", "m.model", "--sample-bytes", "1"], "is not a size"),
        (["report", MODEL, "--corpus", CORPUS, "--max-document-size", "1B"], "--max-document-size"),
        (["train", "--corpus", CORPUS, "--out", "m.model", "--max-malformed", "2"], "--max-malformed"),
    ],
)
def test_a_mistake_in_the_options_is_told_in_words(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        main(arguments)
