import io
from functools import cache

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.tokenizer.model_file import SPACE
from worker.tokenizer.tokenizer import Tokenizer, load_tokenizer
from worker.tokenizer.word_cache import Words

GEMMA = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
BY_WORDS = {
    "gemma": GEMMA | {"byte_fallback": True},
    "several spaces as pieces": GEMMA | {"byte_fallback": True, "allow_whitespace_only_pieces": True},
    "user's pieces": GEMMA | {"byte_fallback": True, "user_defined_symbols": ["\n\n", "  "]},
    "no byte fallback": GEMMA,
    "llama": GEMMA | {"byte_fallback": True, "add_dummy_prefix": True},
    "default": {},
    "default with bytes": {"byte_fallback": True},
    "nfkc without a prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
}
WHOLE = {
    "unigram": GEMMA | {"model_type": "unigram"},
    "pieces across words": GEMMA | {"byte_fallback": True, "split_by_whitespace": False},
    "a user's piece across words": GEMMA | {"byte_fallback": True, "user_defined_symbols": ["e s"]},
    "space as suffix": GEMMA | {"byte_fallback": True, "treat_whitespace_as_suffix": True},
}
SNIPPETS = [*"aesthn  \n\t.1éÅß\0", "न", "म", "े", "्", "ि", "़", "\u200d", SPACE, "\u00a0", "ﬁ", "🐟", "  ", " s", "the ", "e s"]
TEXTS = st.lists(st.lists(st.sampled_from(SNIPPETS), max_size=80).map("".join), min_size=1, max_size=5)


def sample_texts() -> list[str]:
    files = sorted(sample_corpus_dir().rglob("*.jsonl"))
    return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()[:60]]


@cache
def tokenizer(name: str) -> Tokenizer:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_texts()),
        model_writer=out,
        **{"model_type": "bpe", "vocab_size": 500, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2}
        | (BY_WORDS | WHOLE)[name],
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    return Tokenizer(processor, out.getvalue(), "", processor.get_piece_size(), 1, 2, 0, None)


def assert_same(model: Tokenizer, words: Words, texts: list[str]) -> None:
    expected = model.encode(texts)
    tokens, lengths = words.encode(texts)
    assert lengths.tolist() == [len(each) for each in expected]
    assert tokens.tolist() == np.concatenate(expected).tolist()


def words_of(model: Tokenizer) -> Words:
    words = model.words()
    assert words is not None
    return words


@pytest.mark.parametrize("name", BY_WORDS)
@settings(derandomize=True, max_examples=60, deadline=None)
@given(packs=st.lists(TEXTS, min_size=1, max_size=3))
def test_words_give_the_ids_of_the_whole_text(name: str, packs: list[list[str]]) -> None:
    words = words_of(tokenizer(name))
    for texts in packs:
        assert_same(tokenizer(name), words, texts)


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_whose_pieces_reach_across_words_is_not_encoded_by_words(name: str) -> None:
    assert tokenizer(name).words() is None


def test_the_sample_is_encoded_by_words() -> None:
    model = load_tokenizer(sample_tokenizer_path())
    assert_same(model, words_of(model), sample_texts())


def test_words_are_forgotten_when_they_are_too_many() -> None:
    model = tokenizer("gemma")
    words = Words(str.split, lambda new: [np.full(len(word), 7, dtype=np.int32) for word in new], bos_id=1, eos_id=2, max_words=3)
    for texts in (["a bb a", "ccc"], ["dddd a"], ["bb"]):
        tokens, lengths = words.encode(texts)
        assert lengths.tolist() == [2 + len(text.replace(" ", "")) for text in texts]
        assert len(tokens) == lengths.sum()
    assert_same(model, words_of(model), ["a" * 300_000, "b " * 200_000])


def test_of_too_many_words_the_frequent_ones_are_kept() -> None:
    asked: list[str] = []

    def encode(new: list[str]) -> list[NDArray[np.int32]]:
        asked.extend(new)
        return [np.full(len(word), 7, dtype=np.int32) for word in new]

    words = Words(str.split, encode, bos_id=1, eos_id=2, max_words=4)
    for number in range(20):
        tokens, _ = words.encode([f"the of the of x{number}"])
        assert tokens.tolist() == [1, *[7] * (10 + len(f"x{number}")), 2]
    assert asked.count("the") == asked.count("of") == 1
