from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from state.errors import UserError
from state.kaggle.names import (
    CANARY_SLUG,
    FACTS_KERNEL,
    LIMIT_KERNEL,
    LONGEST_SLUG,
    NameKind,
    PushedKernel,
    VersionNote,
    attempt_dataset_slug,
    attempt_kernel_slug,
    check_run_fits,
    checkpoint_file_names,
    control_slug,
    data_slug,
    kind_of,
    model_slug,
    parse_attempt_dataset_slug,
    parse_attempt_kernel_slug,
    pushed_kernels,
    slugify,
    weights_slug,
)

_SHA256 = "0123456789abcdef" * 4
_WORDS = ["a", "x", "k", "s001a1", "s999a99", "k001a1", "s1a1", "control", "weights", "model"]
_WORDS += ["data", "canary", "facts", "limit", "p00", "0123456789abcdef", "gemma", "orch"]

runs = st.one_of(
    st.lists(st.sampled_from(_WORDS), min_size=1, max_size=6).map("-".join),
    st.from_regex(r"[a-z0-9](?:-?[a-z0-9]){0,30}", fullmatch=True),
).filter(lambda run: len(run) <= 31)
"""Names that runs may have; many of them read like the names of something else."""
attempts = st.tuples(st.integers(1, 999), st.integers(1, 99))


def names_of(run: str, *attempts: tuple[int, int]) -> Iterator[tuple[str, NameKind, object]]:
    """Every name of a run, with its kind and what it names."""
    for attempt in attempts:
        yield attempt_dataset_slug(run, *attempt), NameKind.ATTEMPT_DATASET, (run, attempt)
        yield attempt_kernel_slug(run, *attempt), NameKind.ATTEMPT_KERNEL, (run, attempt)
    yield control_slug(run), NameKind.CONTROL, run
    yield weights_slug(run), NameKind.WEIGHTS, run
    yield model_slug(run), NameKind.MODEL, run


def names_of_the_account() -> Iterator[tuple[str, NameKind, object]]:
    """Every name that is of no run."""
    for part in (0, 1, 99, 100):
        yield data_slug(_SHA256, part), NameKind.DATA, part
    for name in (CANARY_SLUG, FACTS_KERNEL, LIMIT_KERNEL):
        yield name, NameKind.CANARY, name


@given(st.lists(runs, min_size=1, max_size=4), st.lists(attempts, min_size=1, max_size=3), st.sampled_from(_WORDS))
@example(["a", "a-control", "a-s001a1", "a-s001a1-k", "a-k001a1"], [(1, 1)], "k")
@example(["data", "data-0123456789abcdef", "canary", "canary-facts"], [(1, 1)], "weights")
@example(["x" * 31, "x" * 29, "x" * 27 + "-k", "x" * 23 + "-k001a1"], [(1, 1), (999, 99)], "s001a1")
def test_no_two_names_meet_whatever_runs_are_called_and_each_fits_and_is_its_own_slug(
    names: list[str], attempts: list[tuple[int, int]], word: str
) -> None:
    longer = [f"{run}-{word}" for run in names if len(run) + 1 + len(word) <= 31]  # one run's name begins another's
    found: dict[str, tuple[NameKind, object]] = {}
    everything = [one for run in {*names, *longer} for one in names_of(run, *{(1, 1), *attempts})]
    for slug, kind, thing in [*everything, *names_of_the_account()]:
        assert found.setdefault(slug, (kind, thing)) == (kind, thing)
        assert slugify(slug) == slug
        assert 6 <= len(slug) <= LONGEST_SLUG
        assert kind_of(slug) is kind
    for run in names:
        check_run_fits(run)


@pytest.mark.parametrize("run", ["", "a" * 32, "Upper", "a--b", "a_b", "-a"])
def test_a_run_whose_names_would_not_work_is_refused(run: str) -> None:
    with pytest.raises(UserError, match="--name"):
        check_run_fits(run)


@given(runs, runs, attempts)
def test_an_attempt_is_read_back_from_its_names_and_from_no_other_runs(run: str, other: str, attempt: tuple[int, int]) -> None:
    dataset, kernel = attempt_dataset_slug(run, *attempt), attempt_kernel_slug(run, *attempt)
    assert parse_attempt_dataset_slug(run, dataset) == attempt
    assert parse_attempt_dataset_slug(run, kernel) is None
    assert parse_attempt_kernel_slug(run, kernel) == attempt
    assert parse_attempt_kernel_slug(run, dataset) == attempt  # as earlier versions called it
    if other != run:
        assert parse_attempt_dataset_slug(other, dataset) is None
        assert parse_attempt_kernel_slug(other, kernel) is None
        assert parse_attempt_kernel_slug(other, dataset) is None


def test_the_names_of_an_attempt_say_which_one_it_is() -> None:
    assert attempt_dataset_slug("my-run", 3, 1) == "gemma-orch-my-run-s003a1"
    assert attempt_kernel_slug("my-run", 3, 1) == "gemma-orch-my-run-s003a1-k"
    assert attempt_kernel_slug("a" * 30, 3, 1) == f"gemma-orch-{'a' * 30}-k003a1"


@pytest.mark.parametrize("slug", ["my-run-control", "my-run-s3a1", "my-run-s0003a1", "my-run-s003a1-x", "my-run-k003a1"])
def test_other_names_are_those_of_no_attempt(slug: str) -> None:
    assert parse_attempt_dataset_slug("my-run", f"gemma-orch-{slug}") is None
    assert parse_attempt_kernel_slug("my-run", f"gemma-orch-{slug}") is None


@pytest.mark.parametrize("slug", ["my-weights", "gemma-orch-mine", "gemma-orch-data-mine-p00", "gemma-orch-control"])
def test_a_name_of_the_users_own_is_of_no_kind(slug: str) -> None:
    assert kind_of(slug) is None


def test_a_kernel_is_the_one_that_its_handle_says_and_without_one_may_have_the_name_of_an_earlier_version() -> None:
    handle = "gemma-orch-tamil-s001a1/v2"
    (pushed,) = pushed_kernels("tamil", 1, 1, handle)
    assert (pushed, str(pushed)) == (PushedKernel("gemma-orch-tamil-s001a1", 2), handle)
    named = (PushedKernel("gemma-orch-tamil-s001a1-k"), PushedKernel("gemma-orch-tamil-s001a1"))
    assert pushed_kernels("tamil", 1, 1, None) == named


def test_a_note_is_read_back_and_other_texts_are_not_notes() -> None:
    note = VersionNote(session=3, attempt=1, fence=7, step=1200, checkpoint="step-00001200-s003a1", manifest_sha256="ab" * 32)
    assert VersionNote.parse(str(note)) == note
    assert VersionNote.parse(f" {note}\n") == note
    for text in ("", "Initial release", f"{note} more", str(note).replace("s003a1 ", "s3 ")):
        assert VersionNote.parse(text) is None


def test_the_files_of_a_checkpoint_have_flat_names_of_their_own() -> None:
    names = checkpoint_file_names("step-00001200-s003a1", ("state.safetensors", "manifest.json"))
    assert names == {
        "state.safetensors": "step-00001200-s003a1.state.safetensors",
        "manifest.json": "step-00001200-s003a1.manifest.json",
    }
