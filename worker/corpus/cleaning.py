"""Cleans one document's text by the rules that the recipe switches on; every change and every drop names its rule."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from state.data_manifest import Recipe

HASH_BYTES = 16  # among 10**9 documents, two different texts with one hash are expected once in 10**20 corpora

# Unicode's category Cc, but for tab and line feed. The joiners of Indic scripts (U+200C, U+200D) are no control characters.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


# Matches characters outside a set that needs no cleaning: no control characters, and never changed by NFC (below U+0300,
# and usual punctuation).
_NOT_PLAIN = re.compile("[^\t\n\x20-\x7e\xa0-\u02ff\u2010-\u2027\u2030-\u203a\u20a0-\u20bf]")


class Rule(StrEnum):
    """A rule of cleaning, as the report names it."""

    NFC = "composed (NFC)"
    CONTROL = "control characters taken out"
    EMPTY = "empty after cleaning"
    SHORT = "too short"
    DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Cleaned:
    """A cleaned text and the rules that changed it; `dropped` is the rule by which it is left out, or None."""

    text: str
    changed: tuple[Rule, ...] = ()
    dropped: Rule | None = None


def clean(text: str, recipe: Recipe) -> Cleaned:
    """Return a document's text after the recipe's rules; duplicates are found in a later stage."""
    changed = []
    is_plain = not _NOT_PLAIN.search(text)
    if recipe.nfc and not is_plain:
        composed = unicodedata.normalize("NFC", text)
        if composed != text:
            text = composed
            changed.append(Rule.NFC)
    if recipe.strip_control and not is_plain:
        stripped = _without_control(text)
        if stripped is not text:
            text = stripped
            changed.append(Rule.CONTROL)
    if not text.strip():
        return Cleaned(text, tuple(changed), Rule.EMPTY)
    if recipe.min_characters and len(text.strip()) < recipe.min_characters:
        return Cleaned(text, tuple(changed), Rule.SHORT)
    return Cleaned(text, tuple(changed))


def hash_of(text: bytes) -> bytes:
    """Return the hash of a cleaned text in UTF-8, [HASH_BYTES]; equal hashes mean equal texts."""
    return hashlib.blake2b(text, digest_size=HASH_BYTES).digest()


def is_held_out(text_hash: bytes, share: float) -> bool:
    """Return whether a document belongs to the validation set. Depends on its text only, not on the rest of the corpus.

    A larger share holds out all that a smaller share does, and more.
    """
    return int.from_bytes(text_hash[-8:], "little") < share * 2.0**64


def _without_control(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text) if _CONTROL.search(text) else text
