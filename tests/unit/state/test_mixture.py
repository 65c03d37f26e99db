import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import UserError
from state.mixture import budget_exceeds_caps, mixture_weights, unimax_weights

languages = st.dictionaries(st.text(min_size=1), st.integers(1, 10**13), min_size=1, max_size=8)
budgets = st.integers(1, 10**14)
caps = st.floats(0.1, 100.0)


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


@settings(derandomize=True, deadline=None)
@given(languages, st.floats(0.0, 1.0))
def test_weights_always_sum_to_one(tokens: dict[str, int], alpha: float):
    weights = mixture_weights(tokens, alpha)
    assert math.fsum(weights.values()) == pytest.approx(1.0, abs=1e-12)
    assert all(weight > 0.0 for weight in weights.values())


def test_unimax_gives_equal_shares_while_no_cap_binds():
    shares = unimax_weights({"a": 100, "b": 500, "c": 9_000}, budget_tokens=300, max_epochs=4.0)
    assert shares == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


def test_unimax_caps_a_small_language_and_shares_what_is_left_evenly():
    # Konkani's cap of 4 * 100 tokens is below the even part of 1000; the two others share the remaining 2600.
    shares = unimax_weights({"konkani": 100, "hindi": 5_000, "english": 90_000}, budget_tokens=3_000, max_epochs=4.0)
    assert shares == pytest.approx({"english": 1300 / 3000, "hindi": 1300 / 3000, "konkani": 400 / 3000})


def test_unimax_falls_back_on_the_tokens_when_the_budget_exceeds_every_cap():
    tokens = {"a": 100, "b": 300}
    assert unimax_weights(tokens, budget_tokens=10_000, max_epochs=4.0) == pytest.approx({"a": 0.25, "b": 0.75})
    assert budget_exceeds_caps(tokens, budget_tokens=1601, max_epochs=4.0)
    assert not budget_exceeds_caps(tokens, budget_tokens=1600, max_epochs=4.0)


@settings(derandomize=True, deadline=None)
@given(languages, budgets, caps)
def test_unimax_shares_sum_to_one_and_none_is_zero(tokens: dict[str, int], budget_tokens: int, max_epochs: float):
    shares = unimax_weights(tokens, budget_tokens=budget_tokens, max_epochs=max_epochs)
    assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-12)
    assert all(share > 0.0 for share in shares.values())
    assert list(shares) == sorted(tokens)


@settings(derandomize=True, deadline=None)
@given(languages, budgets, caps)
def test_unimax_reads_no_language_more_often_than_its_cap_when_the_budget_allows(
    tokens: dict[str, int], budget_tokens: int, max_epochs: float
):
    if budget_exceeds_caps(tokens, budget_tokens=budget_tokens, max_epochs=max_epochs):
        budget_tokens = max(1, int(max_epochs * sum(tokens.values())))
    shares = unimax_weights(tokens, budget_tokens=budget_tokens, max_epochs=max_epochs)
    if not budget_exceeds_caps(tokens, budget_tokens=budget_tokens, max_epochs=max_epochs):
        for name, share in shares.items():
            assert share * budget_tokens <= max_epochs * tokens[name] * (1 + 1e-9)


@settings(derandomize=True, deadline=None)
@given(languages, budgets, caps, st.randoms(use_true_random=False))
def test_unimax_does_not_depend_on_the_order_of_the_languages(tokens, budget_tokens, max_epochs, random):
    shuffled = list(tokens.items())
    random.shuffle(shuffled)
    shares = unimax_weights(tokens, budget_tokens=budget_tokens, max_epochs=max_epochs)
    assert unimax_weights(dict(shuffled), budget_tokens=budget_tokens, max_epochs=max_epochs) == shares


@settings(derandomize=True, deadline=None)
@given(languages, budgets, caps)
def test_unimax_gives_a_larger_language_no_less(tokens: dict[str, int], budget_tokens: int, max_epochs: float):
    shares = unimax_weights(tokens, budget_tokens=budget_tokens, max_epochs=max_epochs)
    by_size = sorted(tokens, key=lambda name: tokens[name])
    assert all(shares[a] <= shares[b] * (1 + 1e-9) for a, b in itertools.pairwise(by_size))


@pytest.mark.parametrize(
    ("tokens", "budget_tokens", "max_epochs"),
    [({}, 10, 4.0), ({"a": 0}, 10, 4.0), ({"a": 5}, 0, 4.0), ({"a": 5}, 10, 0.0), ({"a": 5}, 10, math.inf)],
)
def test_unimax_of_nothing_is_refused(tokens: dict[str, int], budget_tokens: int, max_epochs: float):
    with pytest.raises(UserError):
        unimax_weights(tokens, budget_tokens=budget_tokens, max_epochs=max_epochs)
