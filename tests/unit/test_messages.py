"""The words of all errors, in one file: a change of them is seen there, and nowhere else has to be."""

from __future__ import annotations

import re

from tests.messages import GOLDEN, texts

_RIDDLES = r"\b(nobody|somebody|whoever|is not said|what (?:it|was) (?:is|was|said)|stands? (?:there|whole)|be made of)\b"


def test_the_messages_are_those_of_the_golden_file() -> None:
    """After a change that is meant: `python -m tests.messages > tests/golden/messages.txt`, and read the difference."""
    assert texts() == GOLDEN.read_text(encoding="utf-8")


def test_every_message_is_plain() -> None:
    """The words to say it in are those of docs/glossary.md."""
    assert [line for line in texts().splitlines() if re.search(_RIDDLES, line, re.IGNORECASE)] == []
