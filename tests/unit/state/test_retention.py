from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from state.retention import PruneCandidate, checkpoints_to_prune
from state.spec import Retention


def candidates(*steps: int, unverified: tuple[int, ...] = ()) -> list[PruneCandidate]:
    return [PruneCandidate(f"c{step}", step, verified=step not in unverified) for step in steps]


def test_the_newest_stay_and_the_oldest_go_first() -> None:
    assert checkpoints_to_prune(candidates(40, 10, 30, 20), Retention(keep_last=2), ()) == ("c10", "c20")


def test_every_nth_stays() -> None:
    kept = Retention(keep_last=2, keep_every=20)
    assert checkpoints_to_prune(candidates(10, 20, 30, 40, 50, 60), kept, ()) == ("c10", "c30")


def test_what_is_protected_stays() -> None:
    assert checkpoints_to_prune(candidates(10, 20, 30, 40), Retention(keep_last=2), {"c10", "else"}) == ("c20",)


def test_two_verified_ones_stay_whatever_the_numbers_say() -> None:
    known = candidates(10, 20, 30, 40, 50, unverified=(20, 40, 50))
    assert checkpoints_to_prune(known, Retention(keep_last=2), ()) == ("c20",)


@settings(derandomize=True, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 50), st.booleans()), unique_by=lambda one: one[0]),
    keep_last=st.integers(2, 6),
    keep_every=st.integers(0, 10),
    protected=st.sets(st.integers(0, 50)),
)
def test_what_goes_is_never_needed(steps: list[tuple[int, bool]], keep_last: int, keep_every: int, protected: set[int]) -> None:
    known = [PruneCandidate(f"c{step}", step, verified=verified) for step, verified in steps]
    gone = checkpoints_to_prune(known, Retention(keep_last=keep_last, keep_every=keep_every), {f"c{step}" for step in protected})
    kept = [one for one in known if one.id not in gone]
    newest = sorted(known, key=lambda one: one.step)[-keep_last:]
    assert all(one in kept for one in newest)
    assert sum(one.verified for one in kept) >= min(2, sum(one.verified for one in known))
    assert not {f"c{step}" for step in protected} & set(gone)
    assert not keep_every or all(one.step % keep_every for one in known if one.id in gone)
    assert checkpoints_to_prune(kept, Retention(keep_last=keep_last, keep_every=keep_every), {f"c{s}" for s in protected}) == ()
