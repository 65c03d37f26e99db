"""Finds places where a long text can be cut without changing its ids: the parts' ids, joined, are those of the whole.

We cut because SentencePiece needs 40 to 150 bytes of memory for each character of a text while it encodes: a book as one
document would need as much as everything else. We can cut because BPE joins neighbours only into pieces of the vocabulary.
If two characters are neighbours in no piece, nothing is ever joined across them, and the text on the left of that place
does not influence the ids on its right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from worker.tokenizer.model_file import SPACE, ModelType, PieceKind, SentencePieceModel

_KNOWN_RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
"""SentencePiece's own rules. None of them looks past a space from a letter; a user's own table might."""
_LONGEST_PART = 8
"""A part is at most this many times as long as wished. A text that repeats one character, for example, has no free place."""


@dataclass(frozen=True)
class CutRule:
    """The rule by which a model's texts can be cut."""

    pairs: frozenset[str]
    """All pairs of characters that are neighbours in some piece: no cut between these."""
    at_spaces_only: bool
    """Cut between two words only, because the model changes the text before it cuts it into pieces."""
    drops_space: bool
    """Leave out the space at the cut, because the model puts one before the next part."""

    def parts(self, text: str, max_characters: int) -> Iterator[str]:
        """Yield the text in parts of `max_characters` or a little less.

        If there is no free place for a long stretch, a part is up to eight times longer. After that it is cut anyway if
        cutting does not change the text (the ids at this place may differ from those of the whole); else it is not cut.
        """
        start = 0
        while len(text) - start > max_characters:
            cut = self._place(text, start, max_characters)
            if cut is None:
                break
            yield text[start:cut]
            start = cut + 1 if self.drops_space else cut
        yield text[start:]

    def _place(self, text: str, start: int, max_characters: int) -> int | None:
        wished, last = start + max_characters, start + _LONGEST_PART * max_characters
        backwards = range(wished, start + max_characters // 2, -1)
        forwards = range(wished + 1, min(last, len(text)))
        found = next((place for place in itertools.chain(backwards, forwards) if self._is_free(text, place)), None)
        if found is None and len(text) > last and not self.at_spaces_only:
            return last
        return found

    def _is_free(self, text: str, place: int) -> bool:
        """Return whether a part may end before the character at this place."""
        before, at = text[place - 1], text[place]
        if self.at_spaces_only and not (at == " " and before.isalnum() and text[place + 1 : place + 2].isalnum()):
            return False
        return (before + at).replace(" ", SPACE) not in self.pairs


def cut_rule(model: SentencePieceModel) -> CutRule | None:
    """Return the rule by which a model's texts can be cut; None if every cut could change the ids.

    Unigram models have none: they score whole texts, in sums whose rounding depends on everything before.
    """
    if model.model_type is not ModelType.BPE or not model.escapes_whitespace:
        return None
    if model.charsmap and model.normalisation not in _KNOWN_RULES:
        return None
    if model.adds_dummy_prefix and (model.whitespace_is_suffix or model.has_user_defined_pieces):
        return None
    if model.removes_extra_whitespace and not model.adds_dummy_prefix:
        return None
    if not (model.byte_fallback or any(piece.text == SPACE for piece in model.pieces)):
        return None  # unknown neighbours are joined into one unknown piece
    return CutRule(
        pairs=frozenset(_pairs(model)),
        at_spaces_only=bool(model.charsmap) or model.adds_dummy_prefix or not model.byte_fallback,
        drops_space=model.adds_dummy_prefix,
    )


def _pairs(model: SentencePieceModel) -> Iterator[str]:
    for piece in model.pieces:
        if piece.kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED, PieceKind.UNUSED):
            text = piece.text.replace(" ", SPACE)
            for i in range(len(text) - 1):
                yield text[i : i + 2]
