import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.tokenizer.model_file import SPACE, parse_model
from worker.tokenizer.split_text import CutRule, cut_rule
from worker.tokenizer.tokenizer import Tokenizer, load_tokenizer

GEMMA = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
CUTTABLE = {
    "gemma": GEMMA | {"byte_fallback": True},
    "several spaces as pieces": GEMMA | {"byte_fallback": True, "allow_whitespace_only_pieces": True},
    "pieces across words": GEMMA | {"byte_fallback": True, "split_by_whitespace": False},
    "user's pieces": GEMMA | {"byte_fallback": True, "user_defined_symbols": ["\n\n", "e s", "  "]},
    "space as suffix": GEMMA | {"byte_fallback": True, "treat_whitespace_as_suffix": True},
    "no byte fallback": GEMMA,
    "llama": GEMMA | {"byte_fallback": True, "add_dummy_prefix": True},
    "default": {},
    "default with bytes": {"byte_fallback": True},
    "nfkc without a prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
}
NOT_CUTTABLE = {
    "unigram": GEMMA | {"model_type": "unigram"},
    "characters": GEMMA | {"model_type": "char"},
    "user's pieces and a prefix": {"user_defined_symbols": ["e s"]},
    "prefix at the end": {"treat_whitespace_as_suffix": True},
    "spaces at the edges fall": {"add_dummy_prefix": False},
}


def sample_texts() -> list[str]:
    files = sorted(sample_corpus_dir().rglob("*.jsonl"))
    return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()[:60]]


@cache
def model(name: str) -> bytes:
    options = (CUTTABLE | NOT_CUTTABLE)[name]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_texts()),
        model_writer=out,
        **{"model_type": "bpe", "vocab_size": 500, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2} | options,
    )
    return out.getvalue()


def rule(name: str) -> CutRule | None:
    return cut_rule(parse_model(model(name)))


SNIPPETS = [*"aesthn  \n\t.1éÅß", "न", "म", "े", "्", "ि", "़", "\u200d", SPACE, "\u00a0", "ﬁ", "🐟", "  ", " s", "the ", "e s"]
TEXTS = st.lists(st.sampled_from(SNIPPETS), max_size=300).map("".join)


@pytest.mark.parametrize("name", CUTTABLE)
@settings(derandomize=True, max_examples=30, deadline=None)
@given(text=TEXTS, max_characters=st.integers(2, 40))
def test_the_parts_have_the_ids_of_the_whole(name: str, text: str, max_characters: int):
    cut = rule(name)
    assert cut is not None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model(name))
    parts = list(cut.parts(text, max_characters))
    if max(map(len, parts)) < 8 * max_characters:  # else one was cut by force
        assert [each for part in parts for each in processor.encode(part)] == processor.encode(text)


@pytest.mark.parametrize("name", CUTTABLE)
def test_real_text_is_cut_often_enough(name: str):
    text = " ".join(sample_texts())
    cut = rule(name)
    assert cut is not None
    parts = list(cut.parts(text, 100))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model(name))
    assert [each for part in parts for each in processor.encode(part)] == processor.encode(text)
    assert max(map(len, parts)) <= 400
    assert len(parts) > len(text) / 250


@pytest.mark.parametrize("name", NOT_CUTTABLE)
def test_a_model_that_looks_further_is_given_the_whole(name: str):
    assert rule(name) is None


def test_a_table_of_the_users_own_is_not_trusted_at_a_cut():
    known = parse_model(model("nfkc without a prefix"))
    assert cut_rule(known) is not None
    assert cut_rule(replace(known, normalisation="user_defined")) is None


def test_a_model_that_writes_spaces_as_they_are_is_given_the_whole():
    assert cut_rule(replace(parse_model(model("gemma")), escapes_whitespace=False)) is None


def test_a_model_that_knows_no_space_is_given_the_whole():
    known = parse_model(model("no byte fallback"))
    assert cut_rule(replace(known, pieces=tuple(piece for piece in known.pieces if piece.text != SPACE))) is None


def test_a_text_without_any_place_to_cut_is_cut_by_force_where_that_leaves_it_as_it_is():
    pairs = frozenset({"aa"})
    text = "a" * 1000
    parts = list(CutRule(pairs, at_spaces_only=False, drops_space=False).parts(text, 10))
    assert "".join(parts) == text
    assert max(map(len, parts)) == 80
    assert list(CutRule(pairs, at_spaces_only=True, drops_space=True).parts(text, 10)) == [text]


@pytest.fixture(scope="module")
def sample() -> Tokenizer:
    return load_tokenizer(sample_tokenizer_path())


@pytest.fixture(scope="module")
def long_text() -> str:
    return "\n".join(sample_texts() * 8)[:400_000]


def test_a_long_text_has_the_same_ids_between_its_ends(sample: Tokenizer, long_text: str):
    whole = [2, *sample.processor.encode(long_text), 1]
    short, long, empty = sample.encode(["the sea", long_text, ""])
    assert len(long_text) > 256 * 1024
    assert long.tolist() == whole
    assert short.tolist() == [2, *sample.processor.encode("the sea"), 1]
    assert empty.tolist() == [2, 1]
    assert {each.dtype for each in (short, long, empty)} == {np.dtype(np.int32)}


def test_a_model_that_cannot_be_cut_encodes_a_long_text_whole(sample: Tokenizer, long_text: str):
    data = model("unigram")
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = replace(sample, processor=processor, model_bytes=data)
    assert tokenizer.encode([long_text])[0].tolist() == processor.encode(long_text, add_bos=True, add_eos=True)


def test_an_older_sentencepiece_gives_the_same_arrays(sample: Tokenizer, long_text: str):
    older = replace(sample, gives_arrays=False)
    for text in ("the sea", long_text):
        assert np.array_equal(older.encode([text])[0], sample.encode([text])[0])
        assert older.encode([text])[0].dtype == np.int32


def test_nothing_to_encode_gives_nothing(sample: Tokenizer):
    assert sample.encode([]) == []
