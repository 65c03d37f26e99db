import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece

from state.errors import UserError
from worker.corpus.shipped import sample_tokenizer_path
from worker.tokenizer.model_file import ModelType, PieceKind, parse_model
from worker.tokenizer_training.check import TokenizerCheck, Verdict, check_tokenizer, look_at_file, look_at_vocabulary

GEMMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "character_coverage": 1.0,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
}


def check(folder: Path, **options: object) -> TokenizerCheck:
    model = io.BytesIO()
    defaults: dict[str, object] = {"vocab_size": 300, "hard_vocab_limit": False, "minloglevel": 2}
    texts = ["the sea and the rain"] * 20
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **defaults | GEMMA | options)
    (folder / "m.model").write_bytes(model.getvalue())
    return check_tokenizer(folder / "m.model")


def verdicts(found: TokenizerCheck, pattern: str) -> list[Verdict]:
    return [finding.verdict for finding in found.findings if re.search(pattern, finding.what)]


def test_the_samples_model_is_all_right():
    found = check_tokenizer(sample_tokenizer_path())
    assert found.is_usable
    assert {finding.verdict for finding in found.findings} == {Verdict.OK}
    assert str(found).endswith("tokenizer.model is usable")
    assert TokenizerCheck.from_json(found.to_json(), "it") == found


@pytest.mark.parametrize(("name", "what"), [("bos", "begin"), ("eos", "end")])
def test_a_model_that_cannot_mark_documents_is_not_usable(tmp_path: Path, name: str, what: str):
    found = check(tmp_path, **{f"{name}_id": -1})
    assert not found.is_usable
    assert verdicts(found, f"no {name} piece: nothing would mark where documents {what}") == [Verdict.PROBLEM]
    assert "-> gemma-orch tokenizer train" in str(found)
    assert str(found).endswith("is not usable")


def test_a_model_without_padding_is_usable(tmp_path: Path):
    found = check(tmp_path, pad_id=-1)
    assert found.is_usable
    assert verdicts(found, "no pad piece") == [Verdict.OK]


def test_other_ids_than_gemmas_are_a_note(tmp_path: Path):
    found = check(tmp_path, pad_id=3, unk_id=0)
    assert found.is_usable
    assert verdicts(found, "while Gemma's are") == [Verdict.NOTE]


def test_a_model_of_more_than_16_bits_is_a_note():
    assert look_at_vocabulary(65_536).verdict is Verdict.OK
    found = look_at_vocabulary(65_537)
    assert found.verdict is Verdict.NOTE
    assert "twice the disk" in found.what
    assert "--vocab-size of at most 65536" in found.remedy


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"byte_fallback": False}, "no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "the rule nmt_nfkc replaces characters"),
        ({"add_dummy_prefix": True}, "a space is put before each text"),
        ({"remove_extra_whitespaces": True}, "several spaces become one"),
        ({"model_type": "char"}, "type char: texts become long"),
        ({"model_type": "word"}, "type word: texts become unknown"),
    ],
)
def test_what_changes_text_is_a_note_with_what_to_do(tmp_path: Path, options: dict[str, object], what: str):
    found = check(tmp_path, **options)
    assert found.is_usable
    assert verdicts(found, what) == [Verdict.NOTE]
    assert all(finding.remedy for finding in found.findings if finding.verdict is not Verdict.OK)


def test_pieces_of_the_users_own_are_counted(tmp_path: Path):
    assert verdicts(check(tmp_path, user_defined_symbols=["\n", "<tag>"]), "2 pieces of the user's own") == [Verdict.OK]


def test_text_that_does_not_come_back_is_named(tmp_path: Path):
    found = check(tmp_path, byte_fallback=False)
    notes = [finding.what for finding in found.findings if finding.what.startswith("round trip not exact")]
    assert len(notes) == 1
    assert "Hindi with nukta ('ज़मीन" in notes[0]
    assert "English" in notes[0]  # its comma


def test_spaces_that_stay_spaces_are_a_note():
    model = parse_model(sample_tokenizer_path().read_bytes())
    found = list(look_at_file(replace(model, escapes_whitespace=False)))
    assert [finding.what for finding in found if finding.verdict is Verdict.NOTE] == [
        "normalisation: spaces are not written as '▁'"
    ]


def test_a_file_that_is_no_sentencepiece_model_is_an_error(tmp_path: Path):
    (tmp_path / "m.model").write_bytes(b'{"model": {}}')
    with pytest.raises(UserError, match="no SentencePiece model"):
        check_tokenizer(tmp_path / "m.model")
    with pytest.raises(UserError, match="cannot be read"):
        check_tokenizer(tmp_path / "gone.model")


def test_a_field_that_we_do_not_know_how_to_read_leaves_the_rest(tmp_path: Path):
    group = bytes([201 << 3 & 0x7F | 0x80 | 3, 201 >> 4, 201 << 3 & 0x7F | 0x80 | 4, 201 >> 4])  # an old kind of field
    (tmp_path / "m.model").write_bytes(sample_tokenizer_path().read_bytes() + group)
    found = check_tokenizer(tmp_path / "m.model")
    assert found.is_usable
    assert verdicts(found, "could not be read") == [Verdict.NOTE]


def test_the_reader_of_model_files_finds_what_sentencepiece_finds():
    data = sample_tokenizer_path().read_bytes()
    model = parse_model(data)
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert [piece.text for piece in model.pieces] == [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    assert [piece.score for piece in model.pieces] == [processor.get_score(i) for i in range(processor.get_piece_size())]
    assert [piece.kind is PieceKind.BYTE for piece in model.pieces] == [processor.is_byte(i) for i in range(2048)]
    assert (model.model_type, model.bos_id, model.byte_fallback) == (ModelType.BPE, 2, True)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0b",
        b"\x0a\xff",
        b"\x0a\x02\x0a\x05",
        b"\x0a\x03\x0a\x01\xff",
        b"\x0a\x02\x08\x01",
        b"\x12\x02\x18\x63",
        b"\x12\x04\x1a\x02ab",
    ],
)
def test_bytes_that_are_no_model_are_refused(data: bytes):
    with pytest.raises(ValueError):
        parse_model(data)
