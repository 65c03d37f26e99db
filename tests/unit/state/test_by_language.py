from __future__ import annotations

import pytest

from state.by_language import numbers_by_language
from state.errors import UserError


def test_each_language_has_its_number_in_the_order_given() -> None:
    numbers = numbers_by_language("--weight", ["konkani=0.2", "हिन्दी=3", "a=b=1e-3"])
    assert list(numbers.items()) == [("konkani", 0.2), ("हिन्दी", 3.0), ("a=b", 0.001)]


@pytest.mark.parametrize("text", ["konkani", "konkani=", "=0.2", "konkani=much", "konkani=-1", "konkani=nan", "konkani=inf"])
def test_what_is_no_language_with_a_number_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"--weight .* is not understood\n.*--weight konkani=0.2"):
        numbers_by_language("--weight", ["hindi=1", text])


def test_a_language_that_is_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="names 'hindi' twice"):
        numbers_by_language("--weight", ["hindi=1", "hindi=2"])
