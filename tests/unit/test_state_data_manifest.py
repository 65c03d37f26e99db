import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from state.data_manifest import DataManifest, LanguageData, Shard, Source, mixture_weights, token_bytes_for
from state.errors import DataError, UserError


def language(num_tokens: int = 10, digest: str = "a") -> LanguageData:
    return LanguageData(
        num_documents=2,
        num_tokens=num_tokens,
        num_bytes_text=30,
        shards=(Shard(name="hindi/00000.tokens", num_tokens=num_tokens, sha256=digest * 64),),
        sources=(
            Source(
                corpus=0,
                name="hindi/a.jsonl",
                num_bytes=40,
                sha256="c" * 64,
                num_lines=3,
                num_documents=2,
                skipped={"not JSON": 1},
            ),
        ),
    )


def manifest(**changes: object) -> DataManifest:
    fields: dict[str, object] = {
        "token_bytes": 2,
        "vocab_size": 4096,
        "bos_id": 2,
        "eos_id": 1,
        "pad_id": 0,
        "unk_id": 3,
        "tokenizer_sha256": "b" * 64,
        "languages": {"hindi": language()},
    }
    return DataManifest.sealed(**{**fields, **changes})


def test_a_manifest_survives_the_way_to_json_and_back():
    written = manifest()
    assert DataManifest.from_json(written.to_json(), "data.json") == written


def test_a_manifest_counts_lines_tokens_and_skips_over_its_sources():
    data = manifest(languages={"hindi": language(10), "konkani": language(7)})
    assert data.num_tokens == 17
    assert data.tokens_by_language == {"hindi": 10, "konkani": 7}
    assert data.languages["hindi"].num_lines == 3
    assert data.languages["hindi"].skipped == {"not JSON": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 4097},
        {"eos_id": 5},
        {"pad_id": None},
        {"tokenizer_sha256": "d" * 64},
        {"languages": {"hindi": language(digest="e")}},
        {"languages": {"konkani": language()}},
        {"token_bytes": 4},
    ],
)
def test_everything_that_determines_the_tokens_changes_the_digest(changes: dict[str, object]):
    assert manifest(**changes).data_sha256 != manifest().data_sha256


def test_where_the_text_came_from_does_not_change_the_digest():
    elsewhere = language().model_copy(update={"sources": (), "num_documents": 3})
    assert manifest(languages={"hindi": elsewhere}).data_sha256 == manifest().data_sha256


def test_a_manifest_that_was_changed_by_hand_is_refused():
    text = json.loads(manifest().to_json())
    text["eos_id"] = 3
    with pytest.raises(DataError, match="data_sha256 does not match"):
        DataManifest.from_json(json.dumps(text), "data.json")


def test_shards_that_do_not_add_up_are_refused():
    with pytest.raises(ValidationError, match="the shards hold 9"):
        LanguageData(
            num_documents=1,
            num_tokens=10,
            num_bytes_text=1,
            shards=(Shard(name="a/0.tokens", num_tokens=9, sha256="a" * 64),),
        )


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "data.json", "tokenizer.model"])
def test_a_language_whose_name_cannot_be_a_folder_of_shards_is_refused(name: str):
    with pytest.raises(ValidationError, match="cannot name a language"):
        manifest(languages={name: language()})


def test_a_vocabulary_of_65536_takes_two_bytes_and_one_more_piece_takes_four():
    assert token_bytes_for(65_536) == 2
    assert token_bytes_for(65_537) == 4
    with pytest.raises(ValidationError, match="do not fit"):
        manifest(vocab_size=65_537)


def test_weights_are_proportional_to_tokens_to_the_power_of_alpha():
    weights = mixture_weights({"konkani": 100, "english": 10_000}, alpha=0.5)
    assert weights == pytest.approx({"english": 100 / 110, "konkani": 10 / 110})
    assert list(weights) == ["english", "konkani"]
    assert mixture_weights({"a": 1, "b": 999}, alpha=0.0) == {"a": 0.5, "b": 0.5}


def test_the_default_exponent_is_seven_tenths():
    weights = mixture_weights({"a": 1000, "b": 10})
    assert weights["a"] / weights["b"] == pytest.approx(100**0.7)


def test_given_weights_are_taken_in_any_unit_and_a_language_left_out_gets_none():
    assert mixture_weights({"a": 5, "b": 5, "c": 5}, given={"a": 30, "c": 10}) == {"a": 0.75, "b": 0.0, "c": 0.25}


def test_a_weight_for_an_unknown_language_suggests_the_known_one():
    with pytest.raises(UserError, match="did you mean 'konkani'"):
        mixture_weights({"konkani": 5, "hindi": 5}, given={"konkan": 1.0})


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_no_share_is_refused(weight: float):
    with pytest.raises(UserError, match="the weight of 'a'"):
        mixture_weights({"a": 5}, given={"a": weight})


@pytest.mark.parametrize(
    ("tokens", "alpha", "weights"),
    [({}, 0.7, None), ({"a": 0}, 0.7, None), ({"a": 5}, 0.7, {"a": 0.0}), ({"a": 5}, 0.7, {}), ({"a": 5}, -1.0, None)],
)
def test_a_mixture_of_nothing_is_refused(tokens: dict[str, int], alpha: float, weights: dict[str, float] | None):
    with pytest.raises(UserError):
        mixture_weights(tokens, alpha, weights)


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 10**13), min_size=1), st.floats(0.0, 1.0))
def test_weights_always_sum_to_one(tokens: dict[str, int], alpha: float):
    weights = mixture_weights(tokens, alpha)
    assert math.fsum(weights.values()) == pytest.approx(1.0, abs=1e-12)
    assert all(weight > 0.0 for weight in weights.values())
