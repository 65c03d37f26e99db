from __future__ import annotations

import math

import pytest

from state.errors import CanaryError
from worker.session.canary import Canary

PROMISED = 5.25


def test_in_the_same_environment_the_loss_must_be_equal_to_the_last_bit():
    canary = Canary("step-00000008-s001a1", PROMISED, same_environment=True)
    canary.check(PROMISED)
    with pytest.raises(CanaryError) as caught:
        canary.check(math.nextafter(PROMISED, 6.0))
    assert caught.value.checkpoint_id == "step-00000008-s001a1"
    assert caught.value.exit_code == 4


def test_in_another_environment_rounding_is_forgiven_and_nothing_else():
    canary = Canary("step-00000008-s001a1", PROMISED, same_environment=False)
    canary.check(PROMISED * (1 + 0.9e-3))
    with pytest.raises(CanaryError, match=r"has loss 5\.26"):
        canary.check(PROMISED + 0.01)


def test_a_loss_that_is_no_number_is_no_match():
    with pytest.raises(CanaryError):
        Canary("x", PROMISED, same_environment=False).check(math.nan)
