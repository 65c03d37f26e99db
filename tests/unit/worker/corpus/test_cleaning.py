import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.data_manifest import Recipe
from worker.corpus.cleaning import Rule, clean, hash_of, is_held_out

ALL = Recipe()
NONE = Recipe(nfc=False, strip_control=False)


def test_text_that_is_clean_stays_as_it_is():
    cleaned = clean("नमस्ते दुनिया\n\tand a tab", ALL)
    assert (cleaned.text, cleaned.changed, cleaned.dropped) == ("नमस्ते दुनिया\n\tand a tab", (), None)


def test_text_is_brought_into_the_composed_form_and_that_is_said():
    cleaned = clean("cafe\N{COMBINING ACUTE ACCENT}", ALL)
    assert cleaned.text == "café"
    assert cleaned.changed == (Rule.NFC,)


def test_control_characters_go_and_line_ends_become_line_feeds():
    cleaned = clean("a\x00b\r\nc\rd\x85e\x1b[0m", ALL)
    assert cleaned.text == "ab\nc\nde[0m"
    assert cleaned.changed == (Rule.CONTROL,)


def test_the_joiners_that_indic_scripts_need_stay():
    text = "क्\N{ZERO WIDTH JOINER}ष र्\N{ZERO WIDTH NON-JOINER}य"
    assert clean(text, ALL).text == text


@pytest.mark.parametrize("text", ["cafe\N{COMBINING ACUTE ACCENT}", "a\x00b\r\nc"])
def test_rules_that_are_switched_off_change_nothing(text: str):
    cleaned = clean(text, NONE)
    assert (cleaned.text, cleaned.changed) == (text, ())


def test_a_text_of_which_nothing_is_left_is_dropped():
    assert clean("\x00\x01 \n", ALL).dropped is Rule.EMPTY


def test_short_texts_are_dropped_when_a_least_length_is_asked_for():
    recipe = Recipe(min_characters=5)
    assert clean("  abcd  ", recipe).dropped is Rule.SHORT
    assert clean("abcde", recipe).dropped is None


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str):
    once = clean(text, ALL)
    again = clean(once.text, ALL)
    assert again.text == once.text
    assert unicodedata.is_normalized("NFC", once.text)


@given(st.binary(max_size=40), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_larger_share_holds_out_what_a_smaller_one_does(text: bytes, one: float, other: float):
    small, large = sorted((one, other))
    assert not is_held_out(hash_of(text), small) or is_held_out(hash_of(text), large)


def test_about_the_wanted_share_is_held_out_and_nothing_when_none_is_wanted():
    hashes = [hash_of(str(number).encode()) for number in range(20_000)]
    assert 850 < sum(is_held_out(each, 0.05) for each in hashes) < 1150
    assert not any(is_held_out(each, 0.0) for each in hashes)
