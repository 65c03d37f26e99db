"""Hugging Face's tokenizer cuts text where SentencePiece does."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from state.errors import UserError
from worker.tokenizer.hugging_face import tokenizer_json

TEXTS = [
    "The river was wide and slow, and the boats were tied to old trees.",
    "She counted the steps again: one, two, three, and then she lost count.",
    "हमारे गाँव में हर रविवार को बाज़ार लगता है, और लोग दूर-दूर से आते हैं।",
    "आमच्या गांवांत दर आयतारा बाजार भरता आनी लोक पयस सावन येतात.",
]
HARD = [
    "",
    " ",
    "  two  spaces ",
    "lines\n\nand\ttabs",
    "=========== aaaaaaaaaaa",
    "\ufb01ne \u212b \u00a0 \u200d\u0915",
    "\U0001f600 \U0001f469\u200d\U0001f467",
    "1234567890",
]


def train(folder: Path, **options: object) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=model,
        vocab_size=420,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    path = folder / "some.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "add_dummy_prefix": True, "remove_extra_whitespaces": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "user_defined_symbols": ["\n", "<start_of_turn>"],
        },
    ],
    ids=["as in Gemma", "with a first space", "with SentencePiece's own normalisation", "with pieces of the user"],
)
def test_ids_are_those_of_sentencepiece(tmp_path: Path, options: dict[str, object]) -> None:
    from tokenizers import Tokenizer

    path = train(tmp_path, model_type="bpe", byte_fallback=True, **options)
    ours = Tokenizer.from_str(json.dumps(tokenizer_json(path)))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))

    for text in [*TEXTS, *HARD, "a <start_of_turn>user\nhello"]:
        assert ours.encode(text, add_special_tokens=False).ids == pieces.encode(text), repr(text)
        assert ours.encode(text).ids[0] == pieces.bos_id()
        assert ours.decode(pieces.encode(text)) == pieces.decode(pieces.encode(text)), repr(text)


def test_unigram_models_agree_on_ordinary_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = train(tmp_path, model_type="unigram", byte_fallback=True)
    ours = Tokenizer.from_str(json.dumps(tokenizer_json(path)))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))

    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == pieces.encode(text)


def test_a_model_without_a_first_token_adds_none(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = train(tmp_path, model_type="bpe", bos_id=-1)
    ours = Tokenizer.from_str(json.dumps(tokenizer_json(path)))

    assert ours.encode(TEXTS[0]).ids == sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(TEXTS[0])


@pytest.mark.parametrize("model_type", ["word", "char"])
def test_a_type_without_counterpart_is_refused(tmp_path: Path, model_type: str) -> None:
    path = train(tmp_path, model_type=model_type)

    with pytest.raises(UserError, match="neither of type bpe nor of type unigram"):
        tokenizer_json(path)


@pytest.mark.parametrize("content", [b"\x0f", b"\x0a\xff", b"hello there"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.model").write_bytes(content)

    with pytest.raises(UserError, match="is not a SentencePiece model"):
        tokenizer_json(tmp_path / "x.model")
