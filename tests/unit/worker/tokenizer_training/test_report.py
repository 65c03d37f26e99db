import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece

from state.data_manifest import Recipe
from state.errors import DataError
from tests.repository import ROOT
from worker.corpus.documents import CorpusDocuments, file_bytes
from worker.corpus.progress import Silent
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.tokenizer.tokenizer import Tokenizer, load_tokenizer
from worker.tokenizer_training.report import TokenizerReport, report_tokenizer

SHARED = ROOT.parent / "shared" / "corpus"


def write(folder: Path, name: str, texts: list[str]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return folder


def trained(path: Path, **options: object) -> Tokenizer:
    model = io.BytesIO()
    defaults: dict[str, object] = {"model_type": "bpe", "vocab_size": 290, "hard_vocab_limit": False, "minloglevel": 2}
    texts = ["the sea and the rain and Å the fish"] * 20
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **defaults | options)
    path.write_bytes(model.getvalue())
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def sample() -> Tokenizer:
    return load_tokenizer(sample_tokenizer_path())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared corpus is not here")
def test_the_real_corpus_counts_as_an_independent_count_does():
    expected = json.loads((SHARED / "token_counts.json").read_text())
    report = report_tokenizer(load_tokenizer(SHARED / "multilingual.model"), [SHARED], Recipe())
    assert (report.is_sample, report.skipped, list(report.languages)) == (False, {}, ["english", "hindi", "konkani"])
    for name, language in report.languages.items():
        assert {
            "docs": language.num_documents,
            "tokens": language.num_tokens,
            "tokens_with_bos_eos": language.num_tokens + 2 * language.num_documents,
            "chars_per_token": expected[name]["chars_per_token"],
            "bytes_per_token": round(language.bytes_per_token, 3),
            "tokens_per_word": round(language.tokens_per_word, 3),
            "byte_fallback_tokens": language.num_byte_fallback,
            "unk": language.num_unknown,
            "roundtrip": language.round_trip_rate,
        } == expected[name]


def test_rates_are_what_they_say(sample: Tokenizer, tmp_path: Path):
    corpus = write(tmp_path, "a/a.jsonl", ["the sea", "漢"])
    language = report_tokenizer(sample, [corpus], Recipe()).languages["a"]
    num_tokens = len(sample.processor.encode("the sea")) + len(sample.processor.encode("漢"))
    assert (language.num_documents, language.num_bytes, language.num_words) == (2, 10, 3)
    assert (language.num_tokens, language.num_byte_fallback, language.num_unknown) == (num_tokens, 3, 0)
    assert language.bytes_per_token == 10 / num_tokens
    assert language.tokens_per_word == num_tokens / 3
    assert language.byte_fallback_rate == 3 / num_tokens


def test_text_counts_as_it_stands_with_its_duplicates(sample: Tokenizer, tmp_path: Path):
    corpus = write(tmp_path, "a/a.jsonl", ["cafe\u0301", "cafe\u0301"])
    assert report_tokenizer(sample, [corpus], Recipe()).languages["a"].num_bytes == 12


def test_documents_that_do_not_come_back_are_counted_and_named(tmp_path: Path):
    tokenizer = trained(tmp_path / "m.model", normalization_rule_name="identity", character_coverage=1.0)
    corpus = write(tmp_path / "c", "a/a.jsonl", ["the sea", "the sea 漢 rain", "the", *["漢"] * 4])
    language = report_tokenizer(tokenizer, [corpus], Recipe()).languages["a"]
    assert language.num_round_trip_failures == 5
    assert language.round_trip_rate == pytest.approx(2 / 7)
    assert [(failure.file, failure.record) for failure in language.failures] == [
        ("a/a.jsonl", 2),
        ("a/a.jsonl", 4),
        ("a/a.jsonl", 5),
    ]
    assert "漢 rain" in language.failures[0].text
    assert "漢" not in language.failures[0].decoded
    assert "a/a.jsonl, line 2: " in str(language.failures[0])
    assert language.num_unknown == 5


@pytest.mark.parametrize(
    "options",
    [
        {"byte_fallback": True},
        {"byte_fallback": True, "add_dummy_prefix": False},
        {"byte_fallback": True, "remove_extra_whitespaces": False},
        {"byte_fallback": True, "treat_whitespace_as_suffix": True},
    ],
)
def test_what_the_models_own_normalisation_changes_is_no_failure(tmp_path: Path, options: dict[str, object]):
    tokenizer = trained(tmp_path / "m.model", **options)
    corpus = write(tmp_path / "c", "a/a.jsonl", ["the  sea", "\ufb01sh and Å", "A\u030a", "the sea"])
    language = report_tokenizer(tokenizer, [corpus], Recipe()).languages["a"]
    assert (language.num_round_trip_failures, language.failures) == (0, ())


def test_a_space_that_the_model_writes_for_its_own_mark_is_a_failure(sample: Tokenizer, tmp_path: Path):
    corpus = write(tmp_path, "a/a.jsonl", ["the\u2581sea"])
    assert report_tokenizer(sample, [corpus], Recipe()).languages["a"].num_round_trip_failures == 1


def test_a_model_file_that_only_sentencepiece_can_read_is_compared_with_the_text_itself(sample: Tokenizer, tmp_path: Path):
    strange = replace(sample, model_bytes=b"\x0b")
    assert strange.model is None
    corpus = write(tmp_path, "a/a.jsonl", ["the sea"])
    assert report_tokenizer(strange, [corpus], Recipe()).languages["a"].round_trip_rate == 1.0
    text = "the sea " * 40_000
    assert strange.encode([text])[0].tolist() == sample.encode([text])[0].tolist()


def test_a_sample_takes_the_beginning_of_every_file(sample: Tokenizer, tmp_path: Path):
    for number in range(4):
        write(tmp_path, f"a/{number}.jsonl", [f"the sea {i:02}" for i in range(100)])
    write(tmp_path, "b/b.jsonl", ["rain"])
    report = report_tokenizer(sample, [tmp_path], Recipe(), max_bytes=400)
    assert report.is_sample
    assert report.languages["a"].num_documents == 40  # ten bytes each
    assert report.languages["b"].num_documents == 1
    whole = report_tokenizer(sample, [tmp_path], Recipe(), max_bytes=None)
    assert (whole.is_sample, whole.languages["a"].num_documents) == (False, 400)


def test_a_sample_takes_enough_of_every_language_that_records_name(sample: Tokenizer, tmp_path: Path):
    lines = [{"text": "the sea", "lang": "en" if i % 10 else "kok"} for i in range(100)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = report_tokenizer(sample, [tmp_path], Recipe(language_field="lang"), max_bytes=70)
    assert report.is_sample
    assert {name: language.num_documents for name, language in report.languages.items()} == {"en": 10, "kok": 10}


def test_records_without_text_are_counted_however_many(sample: Tokenizer, tmp_path: Path):
    corpus = write(tmp_path, "a/a.jsonl", ["the sea", "", ""])
    assert report_tokenizer(sample, [corpus], Recipe()).skipped == {"text is empty": 2}


def test_a_corpus_without_any_text_is_told(sample: Tokenizer, tmp_path: Path):
    corpus = write(tmp_path, "a/a.jsonl", [""])
    with pytest.raises(DataError, match="no usable text"):
        report_tokenizer(sample, [corpus], Recipe())


def test_a_report_can_be_read_again(sample: Tokenizer):
    report = report_tokenizer(sample, [sample_corpus_dir()], Recipe())
    assert TokenizerReport.from_json(report.to_json(), "it") == report


def test_progress_reaches_the_end_also_of_files_that_are_left_early(sample: Tokenizer):
    class Count(Silent):
        total_bytes = done_bytes = num_tokens = 0

        def stage(self, name: str, total_bytes: int) -> None:
            self.total_bytes = total_bytes

        def advance(self, num_bytes: int, num_tokens: int = 0) -> None:
            self.done_bytes += num_bytes
            self.num_tokens += num_tokens

    count = Count()
    report_tokenizer(sample, [sample_corpus_dir()], Recipe(), max_bytes=2000, progress=count)
    assert count.done_bytes == count.total_bytes > 0
    assert count.num_tokens > 0


def test_a_file_that_goes_away_is_named_when_it_is_read(tmp_path: Path):
    corpus = write(tmp_path, "a/a.jsonl", ["the sea"])
    documents = CorpusDocuments([corpus], Recipe())
    (tmp_path / "a" / "a.jsonl").unlink()
    assert file_bytes(documents.files[0]) == 0
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read"):
        list(documents.read(Silent()))
