"""Checks whether a SentencePiece model can be used for training and what it does to text; each finding has its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Literal

import sentencepiece

from state.data_manifest import LARGEST_16_BIT_VOCABULARY
from state.document import Document
from worker.tokenizer.model_file import ModelType, PieceKind, SentencePieceModel, parse_model
from worker.tokenizer.tokenizer import load_processor

_GEMMAS_IDS = {"pad": 0, "eos": 1, "bos": 2, "unk": 3}
_ANEW = "gemma-orch tokenizer train --corpus DIR --out FILE trains one that does"
_ROUND_TRIPS = {
    "English": "The sea, and the rain; don't.",
    "accents": "Žluťoučký kůň, naïve café",
    "Hindi with nukta": "ज़मीन पर पढ़ाई, ख़ुद क़लम",
    "Konkani": "दर्या आनी पावस, म्हजें नांव.",
    "joiners": "क्\u200dष र्\u200dय क्\u200cष",
    "digits": "1234567890 १२३४ 3.14",
    "several spaces": "  two  and   three ",
    "line feeds and tabs": "a\n\nb\tc\n",
    "other scripts": "漢字 русский العربية தமிழ்",
    "emoji": "🐟👩\u200d👩\u200d👧🏽",
}


class Verdict(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


class Finding(Document):
    """The result of one check."""

    verdict: Verdict
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        lines = [f"{self.verdict:<8} {self.what}"]
        if self.remedy:
            lines.append(f"{'':<8} -> {self.remedy}")
        return "\n".join(lines)


class TokenizerCheck(Document):
    """The results of all checks; a model with a problem cannot be used for training."""

    schema_version: Literal[1] = 1
    file: str
    is_usable: bool
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        verdict = "usable" if self.is_usable else "not usable"
        return "\n".join([*map(str, self.findings), f"{self.file} is {verdict}"])


def check_tokenizer(path: Path) -> TokenizerCheck:
    """Run all checks on a model file.

    Raises:
        UserError: it is missing, cannot be read, or is no SentencePiece model.
    """
    processor, data = load_processor(path)
    findings = [
        *_special_pieces(processor),
        look_at_vocabulary(processor.get_piece_size()),
        *_structure(data),
        *_round_trips(processor),
    ]
    return TokenizerCheck(
        file=str(path),
        is_usable=all(finding.verdict is not Verdict.PROBLEM for finding in findings),
        findings=tuple(findings),
    )


def _special_pieces(processor: sentencepiece.SentencePieceProcessor) -> Iterator[Finding]:
    ids = {"pad": processor.pad_id(), "eos": processor.eos_id(), "bos": processor.bos_id(), "unk": processor.unk_id()}
    for name in ("bos", "eos"):
        if ids[name] < 0:
            yield _problem(f"no {name} piece: nothing would mark where documents {_ENDS[name]}", _ANEW)
    if 0 <= ids["bos"] == ids["eos"]:
        yield _problem("bos and eos are one piece: the end of a document could not be told from its beginning", _ANEW)
    if ids["pad"] < 0:
        yield _ok("no pad piece, and training needs none")
    present = {name: number for name, number in ids.items() if number >= 0}
    said = ", ".join(f"{name} {number}" for name, number in present.items())
    if all(_GEMMAS_IDS[name] == number for name, number in present.items()):
        yield _ok(f"special ids as Gemma's: {said}")
    else:
        gemmas = ", ".join(f"{name} {number}" for name, number in _GEMMAS_IDS.items())
        yield _note(
            f"special ids {said}, while Gemma's are {gemmas}",
            "nothing, when you train from the beginning: ids are read from the model; Gemma's own weights would not fit",
        )


_ENDS = {"bos": "begin", "eos": "end"}


def look_at_vocabulary(size: int) -> Finding:
    """Say what a vocabulary of this size means for the shards."""
    if size <= LARGEST_16_BIT_VOCABULARY:
        return _ok(f"{size:,} pieces: a token takes 16 bits in the shards")
    return _note(
        f"{size:,} pieces, more than {LARGEST_16_BIT_VOCABULARY:,}: a token takes 32 bits in the shards, twice the disk",
        f"it works; a --vocab-size of at most {LARGEST_16_BIT_VOCABULARY} halves the shards, and the embedding is smaller"
        " (gemma-orch tokenizer train): the pieces of a finished model cannot be taken out",
    )


def _structure(data: bytes) -> Iterator[Finding]:
    try:
        model = parse_model(data)
    except ValueError as error:
        yield _note(f"the model file could not be read beyond its pieces ({error})", "see the round trips below")
        return
    yield from look_at_file(model)


def look_at_file(model: SentencePieceModel) -> Iterator[Finding]:
    """Say what the fields of a model file mean for text."""
    yield from _type(model)
    yield _byte_fallback(model)
    yield from _normalisation(model)


def _type(model: SentencePieceModel) -> Iterator[Finding]:
    if model.model_type in (ModelType.BPE, ModelType.UNIGRAM):
        yield _ok(f"type {model.model_type.name.lower()}")
    else:
        yield _note(
            f"type {model.model_type.name.lower()}: texts become {'long' if model.model_type is ModelType.CHAR else 'unknown'},"
            " and there is no tokenizer.json of it for Hugging Face's libraries",
            "train one of type bpe or unigram",
        )
    if model.has_user_defined_pieces:
        count = sum(piece.kind is PieceKind.USER_DEFINED for piece in model.pieces)
        yield _ok(f"{count:,} pieces of the user's own, found in text before all others")


def _byte_fallback(model: SentencePieceModel) -> Finding:
    num_bytes = sum(piece.kind is PieceKind.BYTE for piece in model.pieces)
    if model.byte_fallback and num_bytes == 256:
        return _ok("byte fallback: every text can be written")
    return _note(
        "no byte fallback: characters without a piece become <unk>, and are lost",
        "gemma-orch tokenizer report says how many; a model trained with --byte_fallback=true loses none",
    )


def _normalisation(model: SentencePieceModel) -> Iterator[Finding]:
    changes = []
    if model.charsmap:
        rule = model.normalisation or "without a name"
        changes.append((f"the rule {rule} replaces characters", "--normalization_rule_name=identity"))
    if model.adds_dummy_prefix:
        changes.append(("a space is put before each text", "--add_dummy_prefix=false"))
    if model.removes_extra_whitespace:
        changes.append(("several spaces become one, those at the ends fall", "--remove_extra_whitespaces=false"))
    if not model.escapes_whitespace:
        changes.append((f"spaces are not written as {'▁'!r}", "--escape_whitespaces=true"))
    if not changes:
        yield _ok("normalisation: none, text stays as it is")
    for what, option in changes:
        yield _note(f"normalisation: {what}", f"harmless if you want it so; a model trained with {option} leaves text as it is")


def _round_trips(processor: sentencepiece.SentencePieceProcessor) -> Iterator[Finding]:
    failed = []
    for name, text in _ROUND_TRIPS.items():
        decoded = processor.decode(processor.encode(text))
        if decoded != text:
            failed.append(f"{name} ({text!r} comes back as {decoded!r})")
    if not failed:
        yield _ok(f"round trip exact: {', '.join(_ROUND_TRIPS)}")
        return
    yield _note(
        f"round trip not exact: {'; '.join(failed)}",
        "what the model writes will lack it; where your text has it, see gemma-orch tokenizer report FILE --corpus DIR",
    )


def _finding(verdict: Verdict) -> Callable[[str, str], Finding]:
    return lambda what, remedy: Finding(verdict=verdict, what=what, remedy=remedy)


_note, _problem = _finding(Verdict.NOTE), _finding(Verdict.PROBLEM)


def _ok(what: str) -> Finding:
    return Finding(verdict=Verdict.OK, what=what)
