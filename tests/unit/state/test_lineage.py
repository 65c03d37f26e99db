from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import UserError
from state.lineage import TreeLine, ancestors, is_ancestor, resolve, tree

#  a - b - c - d
#       \ e - f
#        \ g
PARENTS = {"a": None, "b": "a", "c": "b", "d": "c", "e": "b", "f": "e", "g": "b"}


def test_ancestors_come_newest_first_and_begin_with_the_checkpoint_itself() -> None:
    assert list(ancestors("f", PARENTS)) == ["f", "e", "b", "a"]
    assert list(ancestors(None, PARENTS)) == []


def test_a_lineage_ends_where_it_is_not_known_any_more() -> None:
    assert list(ancestors("c", {"c": "b"})) == ["c"]
    assert list(ancestors("c", {})) == []


def test_a_lineage_that_bites_its_tail_ends() -> None:
    assert list(ancestors("a", {"a": "b", "b": "a"})) == ["a", "b"]


def test_only_what_lies_before_is_an_ancestor() -> None:
    assert is_ancestor("b", "f", PARENTS)
    assert is_ancestor("f", "f", PARENTS)
    assert not is_ancestor("c", "f", PARENTS)
    assert not is_ancestor("a", None, PARENTS)


def test_a_line_is_drawn_straight_and_its_forks_deeper_before_it_goes_on() -> None:
    assert tree(PARENTS, sorted(PARENTS)) == (
        TreeLine("a", 0),
        TreeLine("b", 0),
        TreeLine("g", 1),
        TreeLine("e", 1),
        TreeLine("f", 1),
        TreeLine("c", 0),
        TreeLine("d", 0),
    )


def test_a_checkpoint_whose_parent_is_unknown_is_a_root() -> None:
    assert tree({"x": "gone", "y": None}, ["x", "y"]) == (TreeLine("x", 0), TreeLine("y", 0))


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=40))
def test_a_tree_draws_everything_once_and_parents_before_children(choices: list[int]) -> None:
    parents = {str(number): str(choice) if choice < number else None for number, choice in enumerate(choices)}
    drawn = [line.id for line in tree(parents, list(parents))]
    assert sorted(drawn) == sorted(parents)
    assert all(drawn.index(parent) < drawn.index(child) for child, parent in parents.items() if parent is not None)


def test_an_id_is_found_by_a_unique_prefix_or_by_its_whole_name() -> None:
    known = ["step-1", "step-10", "other"]
    assert resolve("o", known, "checkpoint") == "other"
    assert resolve("step-1", known, "checkpoint") == "step-1"


def test_an_ambiguous_prefix_lists_what_it_begins() -> None:
    with pytest.raises(UserError, match="'st' begins 2 checkpoints: step-1, step-2"):
        resolve("st", ["step-2", "step-1"], "checkpoint")
    with pytest.raises(UserError, match=r"begins 6 runs: r0, r1, r2, r3 \.\.\."):
        resolve("r", [f"r{number}" for number in range(6)], "run")


def test_an_unknown_name_is_hinted_at_when_it_is_close() -> None:
    with pytest.raises(UserError, match=r"there is no run 'tamul'; did you mean 'tamil'\?"):
        resolve("tamul", ["tamil"], "run")
    with pytest.raises(UserError, match=r"there is no run 'x'$"):
        resolve("x", [], "run")
