import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.tokenizer_training.sample import MAX_TIMES, TextSample, passages, rates

SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**9), min_size=1)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(sizes=SIZES, budget=st.integers(1, 10**9), alpha=st.floats(0.0, 1.0))
def test_rates_stay_within_the_budget_and_the_cap(sizes: dict[str, int], budget: int, alpha: float):
    wanted = rates(sizes, budget, alpha)
    assert sum(wanted[name] * size for name, size in sizes.items()) <= budget * (1 + 1e-9)
    assert all(0.0 < rate <= MAX_TIMES for rate in wanted.values())
    assert wanted[max(sizes, key=lambda name: sizes[name])] <= 1.0 + 1e-9


@settings(derandomize=True, max_examples=300, deadline=None)
@given(sizes=SIZES, more=SIZES, budget=st.integers(1, 10**9), alpha=st.floats(0.0, 1.0))
def test_a_rate_below_one_never_grows_when_text_is_added(sizes: dict[str, int], more: dict[str, int], budget: int, alpha: float):
    before = rates(sizes, budget, alpha)
    after = rates({name: sizes.get(name, 0) + more.get(name, 0) for name in sizes | more}, budget, alpha)
    for name, rate in before.items():
        if rate < 1.0:
            assert after[name] <= rate * (1 + 1e-9)


def test_a_small_language_is_not_drowned():
    wanted = rates({"english": 10e9, "hindi": 3e9, "konkani": 0.1e9}, 200e6, 0.3)
    sizes = {"english": 10e9, "hindi": 3e9, "konkani": 0.1e9}
    shares = {name: wanted[name] * size / 200e6 for name, size in sizes.items()}
    whole = sum(size**0.3 for size in sizes.values())
    assert shares == pytest.approx({name: size**0.3 / whole for name, size in sizes.items()})
    assert shares["konkani"] > 0.12  # it is 0.008 of the corpus


def test_what_a_language_cannot_give_goes_to_the_others():
    wanted = rates({"english": 10e9, "konkani": 1e6}, 200e6, 0.3)
    assert wanted["konkani"] == MAX_TIMES
    assert wanted["english"] * 10e9 == pytest.approx(200e6 - MAX_TIMES * 1e6)


def test_a_corpus_smaller_than_the_budget_gives_all_it_has_and_small_languages_count_more():
    assert rates({"english": 8e6, "konkani": 1e6}, 200e6, 0.0) == pytest.approx({"english": 1.0, "konkani": MAX_TIMES})
    assert rates({"english": 8e6, "konkani": 1e6}, 200e6, 1.0) == pytest.approx({"english": 1.0, "konkani": 1.0})


def corpus(seed: int) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    documents = [("big", f"{i} " + "sea rain " * chance.randrange(5, 300)) for i in range(1500)]
    documents += [("small", f"पावस {i} " * chance.randrange(5, 60)) for i in range(40)]
    chance.shuffle(documents)
    return documents


def taken(documents: list[tuple[str, str]], budget: int, alpha: float) -> list[bytes]:
    sample = TextSample(budget, alpha)
    for language, text in documents:
        sample.add(language, text)
    return list(sample.drain())


@pytest.mark.parametrize("budget", [30_000, 300_000, 10**9])
def test_the_sample_does_not_depend_on_the_order_of_the_documents(budget: int):
    documents = corpus(1)
    first = taken(documents, budget, 0.3)
    for order in range(3):
        random.Random(order).shuffle(documents)
        assert taken(documents, budget, 0.3) == first


def test_the_sample_has_about_its_size_and_says_so():
    sample = TextSample(300_000, 0.3)
    for language, text in corpus(2):
        sample.add(language, text)
    summary = sample.summary()
    drained = list(sample.drain())
    assert sum(language.sampled_bytes for language in summary.values()) == sum(map(len, drained))
    assert 200_000 < sum(map(len, drained)) < 330_000
    assert (summary["big"].num_documents, summary["small"].num_documents) == (1500, 40)
    assert summary["small"].sampled_bytes > 0.05 * summary["big"].sampled_bytes
    assert list(sample.drain()) == []


def test_equal_passages_come_once():
    assert taken([("a", "the sea")] * 5 + [("a", "the rain")], 10**6, 1.0) == taken(
        [("a", "the rain"), ("a", "the sea")], 10**6, 1.0
    )


def test_nothing_gives_nothing():
    assert taken([], 1000, 0.3) == []
    assert TextSample(1000, 0.3).summary() == {}


@settings(derandomize=True, max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("ab \n"), max_size=200), size=st.integers(1, 30))
def test_passages_join_to_the_text_and_are_cut_before_white_space(text: str, size: int):
    parts = list(passages(text, size))
    assert "".join(parts) == text
    assert all(len(part) <= size for part in parts)
    for before, part in itertools.pairwise(parts):
        assert part[0].isspace() or not any(character.isspace() for character in before[1:])
