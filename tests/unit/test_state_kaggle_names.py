from __future__ import annotations

import pytest

from state.errors import UserError
from state.kaggle.names import (
    LONGEST_SLUG,
    VersionNote,
    attempt_slug,
    check_run_fits,
    checkpoint_file_names,
    control_slug,
    data_slug,
    parse_attempt_slug,
    slugify,
)


def test_every_name_is_the_slug_of_itself_and_fits() -> None:
    run = "a" * 31
    check_run_fits(run)
    for name in (attempt_slug(run, 999, 99), control_slug(run), data_slug("0123456789abcdef" * 4, 99)):
        assert slugify(name) == name
        assert 6 <= len(name) <= LONGEST_SLUG


@pytest.mark.parametrize("run", ["a" * 32, "Upper", "a--b", "a_b", "-a"])
def test_a_run_whose_names_would_not_work_is_refused(run: str) -> None:
    with pytest.raises(UserError, match="shorter --name"):
        check_run_fits(run)


def test_an_attempt_is_read_back_from_its_slug() -> None:
    assert attempt_slug("my-run", 3, 1) == "gemma-orch-my-run-s003a1"
    assert parse_attempt_slug("my-run", "gemma-orch-my-run-s003a1") == (3, 1)
    assert parse_attempt_slug("my", "gemma-orch-my-run-s003a1") is None
    assert parse_attempt_slug("my-run", "gemma-orch-my-run-control") is None
    assert parse_attempt_slug("my-run", "gemma-orch-other-s003a1") is None


def test_a_note_is_read_back_and_other_texts_are_not_notes() -> None:
    note = VersionNote(session=3, attempt=1, fence=7, step=1200, checkpoint="s003a1-00001200", manifest_sha256="ab" * 32)
    assert VersionNote.parse(str(note)) == note
    assert VersionNote.parse(f" {note}\n") == note
    for text in ("", "Initial release", f"{note} more", str(note).replace("s003a1 ", "s3 ")):
        assert VersionNote.parse(text) is None


def test_the_files_of_a_checkpoint_have_flat_names_of_their_own() -> None:
    names = checkpoint_file_names("s003a1-00001200", ("state.safetensors", "manifest.json"))
    assert names == {
        "state.safetensors": "s003a1-00001200.state.safetensors",
        "manifest.json": "s003a1-00001200.manifest.json",
    }
