import io
from pathlib import Path

import pytest
import sentencepiece

from state.errors import UserError
from worker.corpus.shipped import sample_tokenizer_path
from worker.tokenizer.tokenizer import load_tokenizer


def train(path: Path, **options: int) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small text for a small model"] * 3),
        model_writer=model,
        model_type="char",
        vocab_size=50,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return path


def test_the_samples_model_has_gemmas_special_ids():
    tokenizer = load_tokenizer(sample_tokenizer_path())
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 2048


@pytest.mark.parametrize("text", ["दर्या आनी पावस.", "The sea,  and\nrain!", "नमस्ते १२३", "žluťoučký 漢字 🐟"])
def test_any_text_comes_back_whole_from_the_samples_model(text: str):
    processor = load_tokenizer(sample_tokenizer_path()).processor
    assert processor.decode(processor.encode(text)) == text
    assert processor.unk_id() not in processor.encode(text)


def test_documents_are_wrapped_in_bos_and_eos():
    tokenizer = load_tokenizer(sample_tokenizer_path())
    ids = tokenizer.encode(["the sea", "<eos>"])
    assert [each[0] for each in ids] == [2, 2]
    assert [each[-1] for each in ids] == [1, 1]
    assert 1 not in ids[1][1:-1].tolist()  # a text that spells a special piece does not become one


def test_a_model_without_padding_is_usable(tmp_path: Path):
    assert load_tokenizer(train(tmp_path / "m.model", pad_id=-1)).pad_id is None


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_model_without_an_end_or_a_beginning_says_what_to_do(tmp_path: Path, name: str):
    options = {f"{name}_id": -1}
    with pytest.raises(UserError, match=f"has no {name} piece") as caught:
        load_tokenizer(train(tmp_path / "m.model", **options))
    assert "train the model with" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"hello", b'{"version": "1.0", "model": {}}', b"\x00" * 100])
def test_a_file_that_is_no_sentencepiece_model_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "m.model").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.model is no SentencePiece model"):
        load_tokenizer(tmp_path / "m.model")


@pytest.mark.parametrize("name", ["gone.model", "."])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path / name)
