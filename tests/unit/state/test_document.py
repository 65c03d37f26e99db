from __future__ import annotations

import hashlib

import pytest
from pydantic import Field, ValidationError

from state.document import Document, digest_of
from state.errors import DataError, ExitCode


class Inner(Document):
    number: float = 1.0


class Letter(Document):
    text: str
    inner: Inner = Inner()
    words: tuple[str, ...] = Field(default=(), max_length=2)


def test_a_document_survives_being_written_and_read() -> None:
    letter = Letter(text="नमस्ते\n", words=("a", "b"))
    assert Letter.from_json(letter.to_json(), "here") == letter
    assert letter.to_json().endswith(b"\n")


def test_a_document_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Letter(text="x").text = "y"  # type: ignore[misc]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_in_a_document_is_a_number(number: float) -> None:
    with pytest.raises(ValidationError):
        Inner(number=number)


def test_what_is_wrong_with_a_text_is_said_by_place_and_origin() -> None:
    with pytest.raises(DataError) as caught:
        Letter.from_json('{"inner": {"number": "x", "extra": 1}}', "letter.json")
    assert str(caught.value).startswith("letter.json is not a valid Letter: text: Field required; inner.number: ")
    assert "inner.extra" in str(caught.value)
    assert caught.value.exit_code == ExitCode.DATA


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_json_object_at_all_is_said_as_well(text: bytes) -> None:
    with pytest.raises(DataError, match=r"letter\.json is not a valid Letter: document: "):
        Letter.from_json(text, "letter.json")


def test_the_digest_is_that_of_the_canonical_form() -> None:
    canonical = b'{"inner":{"number":1.0},"text":"x","words":[]}'
    assert Letter(text="x").digest() == hashlib.sha256(canonical).hexdigest()
    assert digest_of({"b": 1, "a": [2]}) == digest_of({"a": [2], "b": 1})
    assert Letter(text="x").digest() != Letter(text="y").digest()


def test_a_digest_of_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of({"loss": float("nan")})


def test_a_copy_with_other_values_is_checked_as_a_new_document_is() -> None:
    letter = Letter(text="x", words=("a",))
    changed = letter.evolve(text="y", inner=Inner(number=2.0))
    assert changed == Letter(text="y", inner=Inner(number=2.0), words=("a",))
    assert letter.text == "x"


@pytest.mark.parametrize(
    "wrong", [{"text": 5}, {"text": None}, {"inner": {"number": "2"}}, {"words": ["a"]}, {"words": ("a", "b", "c")}]
)
def test_a_value_of_a_wrong_type_is_refused_where_it_is_given_and_never_converted(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Letter(text="x").evolve(**wrong)


def test_a_field_that_does_not_exist_is_refused_with_the_one_that_may_be_meant() -> None:
    with pytest.raises(TypeError, match="Letter has no field 'txt'; did you mean 'text'"):
        Letter(text="x").evolve(txt="y")
    with pytest.raises(TypeError, match=r"Letter has no field 'zzz'$"):
        Letter(text="x").evolve(zzz="y")
