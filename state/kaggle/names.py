"""Every name on the account, in one place; each is equal to its slugified title, else Kaggle wedges what it names."""

from __future__ import annotations

import re

from state.document import Document
from state.errors import UserError
from state.layout import attempt_name, parse_attempt_name

LONGEST_SLUG = 50
PREFIX = "gemma-orch"
STOP_FLAG_NAME = "stop.json"
"""File of the control dataset with the StopFlag."""
OUTPUT_FOLDER = "checkpoint"
"""Folder of a kernel's output with the last checkpoint of a session that could not upload it."""

_LONGEST_ATTEMPT = len("-s999a99")
_LONGEST_RUN = LONGEST_SLUG - len(PREFIX) - 1 - _LONGEST_ATTEMPT
_NOTE = re.compile(
    r"gemma-orch (?P<attempt>s\d+a\d+) fence (?P<fence>\d+) step (?P<step>\d+) (?P<checkpoint>\S+) (?P<sha>[0-9a-f]{64})"
)


def slugify(title: str) -> str:
    """Return the slug that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def check_run_fits(run: str) -> None:
    """Check that every name of a run fits into Kaggle's limit.

    Raises:
        UserError: the run's name is too long, or its slug would be another one.
    """
    if len(run) > _LONGEST_RUN or slugify(run) != run:
        raise UserError(
            f"run {run!r} cannot have kernels on Kaggle: their names would be too long, or not their own slugs",
            expected=f"at most {_LONGEST_RUN} lower-case letters, digits and single hyphens",
            remedy="choose a shorter --name",
        )


def attempt_slug(run: str, session: int, attempt: int) -> str:
    """Return the slug of an attempt's kernel and of the dataset of its checkpoints, such as `gemma-orch-my-run-s003a1`."""
    return f"{PREFIX}-{run}-{attempt_name(session, attempt)}"


def parse_attempt_slug(run: str, slug: str) -> tuple[int, int] | None:
    """Return (session, attempt) when the slug is that of an attempt of the run, else None."""
    prefix = f"{PREFIX}-{run}-"
    return parse_attempt_name(slug.removeprefix(prefix)) if slug.startswith(prefix) else None


def control_slug(run: str) -> str:
    """Return the slug of the dataset through which a run is told to stop, and adopted."""
    return f"{PREFIX}-{run}-control"


def weights_slug(run: str) -> str:
    """Return the slug of the dataset that a run's weights are published in, unless the user names another one."""
    return f"{PREFIX}-{run}-weights"


def data_slug(data_sha256: str, part: int) -> str:
    """Return the slug of the dataset of one part of prepared data; part 0 has the manifest and the tokenizer."""
    return f"{PREFIX}-data-{data_sha256[:16]}-p{part:02d}"


class VersionNote(Document):
    """What the notes of a dataset version say, so that one look at a dataset tells what each version holds."""

    session: int
    attempt: int
    fence: int
    step: int
    checkpoint: str
    manifest_sha256: str

    def __str__(self) -> str:
        name = attempt_name(self.session, self.attempt)
        return f"gemma-orch {name} fence {self.fence} step {self.step} {self.checkpoint} {self.manifest_sha256}"

    @classmethod
    def parse(cls, text: str) -> VersionNote | None:
        """Return the note that a text is, or None when it is another text."""
        match = _NOTE.fullmatch(text.strip())
        numbers = parse_attempt_name(match["attempt"]) if match else None
        if match is None or numbers is None:
            return None
        return cls(
            session=numbers[0],
            attempt=numbers[1],
            fence=int(match["fence"]),
            step=int(match["step"]),
            checkpoint=match["checkpoint"],
            manifest_sha256=match["sha"],
        )


def checkpoint_file_names(checkpoint_id: str, names: tuple[str, ...]) -> dict[str, str]:
    """Return, by a checkpoint's own file names, those that they have in a dataset: flat, and unique over all checkpoints."""
    return {name: f"{checkpoint_id}.{name}" for name in names}
