"""Where a long text can be cut so that its parts have, one after another, the ids of the whole.

SentencePiece takes 40 to 150 bytes of memory for each character of a text while it encodes it: a book as one document would
take as much as all else. BPE joins neighbours into a longer piece only when that piece is in the vocabulary, so nothing is
ever joined across two characters that stand side by side in no piece: what is left and what is right of such a place have
nothing to do with each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from worker.tokenizer.model_file import SPACE, ModelType, PieceKind, SentencePieceModel

_KNOWN_RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
"""SentencePiece's own: none of them looks from a letter past a space, as a table of the user's own might."""
_LONGEST_PART = 8
"""A part is at most this many times as long as wished: the text of one character, say, has no other place to cut."""


@dataclass(frozen=True)
class CutRule:
    """Where a model's texts can be cut."""

    pairs: frozenset[str]
    """Two characters that are neighbours in some piece."""
    at_spaces_only: bool
    """Between two words only, as the model changes the text before it cuts it into pieces."""
    drops_space: bool
    """The space at the cut is left out, as the model puts one before the part that follows."""

    def parts(self, text: str, max_characters: int) -> Iterator[str]:
        """Yield the text in parts of `max_characters` or a little less.

        Where nothing can be cut for a long stretch, a part is longer, up to eight times; then it is cut nevertheless when
        that leaves the text as it is (its ids may differ there from those of the whole), and else not at all.
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
    """Return where texts can be cut for a model; None: nowhere without changing the ids.

    A unigram model weighs whole texts, in sums whose rounding depends on all that stands before.
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
        return None  # neighbours that are unknown become one unknown piece
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
