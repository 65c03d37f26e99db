"""All names on the account: of kernels, datasets, models and version notes.

A name equals its slugified title, because Kaggle cannot find a thing whose slug and title differ.

An account has one namespace: a kernel cannot have the slug of a dataset, and we assume the same of models. So a run's names
begin with the prefix and the run's name, and end with words that tell the kind. Two things of different kinds or runs never
have the same name, for any names of runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from state.document import Document
from state.errors import UserError
from state.layout import (
    CheckpointId,
    attempt_name,
    check_checkpoint_id,
    check_run_name,
    checkpoint_id,
    parse_attempt_name,
)

LONGEST_SLUG = 50
PREFIX = "gemma-orch"
STOP_FLAG_NAME = "stop.json"
"""The file of the control dataset that holds the StopFlag."""
OUTPUT_FOLDER = "checkpoint"
"""The folder of a kernel's output that holds the last checkpoint of a session that could not upload it."""

CANARY_SLUG = f"{PREFIX}-canary"
"""The probe: the dataset that `doctor` writes to."""
FACTS_KERNEL = f"{PREFIX}-canary-facts"
"""The probe kernel that reports facts about a session."""
LIMIT_KERNEL = f"{PREFIX}-canary-limit"
"""The probe kernel that runs until Kaggle ends it at its limit."""

_LONGEST_ATTEMPT = len("-s999a99")
_LONGEST_RUN = LONGEST_SLUG - len(PREFIX) - 1 - _LONGEST_ATTEMPT
_KERNEL_ENDING = "-k"
_LONGEST_RUN_WITH_ENDING = _LONGEST_RUN - len(_KERNEL_ENDING)
_HANDLE = re.compile(r"(?P<slug>.+)/v(?P<version>\d+)")
_NOTE = re.compile(
    r"gemma-orch (?P<attempt>s[0-9]+a[0-9]+) fence (?P<fence>[0-9]{1,18}) step (?P<step>[0-9]{1,18}) "
    r"(?P<checkpoint>\S+) (?P<sha>[0-9a-f]{64})"
)


def slugify(title: str) -> str:
    """Return the slug that Kaggle derives from a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def check_run_fits(run: str) -> None:
    """Check that all names of a run are valid on Kaggle.

    Raises:
        UserError: the run's name is too long, or Kaggle would derive another slug from it.
    """
    check_run_name(run)
    if len(run) > _LONGEST_RUN or slugify(run) != run:
        raise UserError(
            f"run {run!r} cannot have kernels on Kaggle: their names would be too long, or not their own slugs",
            expected=f"at most {_LONGEST_RUN} lower-case letters, digits and single hyphens",
            remedy="choose a shorter --name",
        )


def attempt_dataset_slug(run: str, session: int, attempt: int) -> str:
    """Return the slug of an attempt's dataset, such as `gemma-orch-my-run-s003a1`."""
    return f"{PREFIX}-{run}-{attempt_name(session, attempt)}"


def attempt_kernel_slug(run: str, session: int, attempt: int) -> str:
    """Return the slug of an attempt's kernel, such as `gemma-orch-my-run-s003a1-k`.

    If the run's name is too long for that, the slug ends in `-k003a1`.
    """
    if len(run) <= _LONGEST_RUN_WITH_ENDING:
        return attempt_dataset_slug(run, session, attempt) + _KERNEL_ENDING
    return f"{PREFIX}-{run}-k{attempt_name(session, attempt)[1:]}"


def parse_attempt_dataset_slug(run: str, slug: str) -> tuple[int, int] | None:
    """Return (session, attempt) if the slug names an attempt's dataset of the run, else None."""
    prefix = f"{PREFIX}-{run}-"
    numbers = parse_attempt_name(slug.removeprefix(prefix)) if slug.startswith(prefix) else None
    return numbers if numbers is not None and attempt_dataset_slug(run, *numbers) == slug else None


def parse_attempt_kernel_slug(run: str, slug: str) -> tuple[int, int] | None:
    """Return (session, attempt) if the slug names an attempt's kernel of the run, now or in earlier versions, else None."""
    prefix = f"{PREFIX}-{run}-"
    name = re.sub(r"^k(?=\d)", "s", slug.removeprefix(prefix).removesuffix(_KERNEL_ENDING))
    numbers = parse_attempt_name(name) if slug.startswith(prefix) else None
    return numbers if numbers is not None and slug in _kernel_slugs(run, *numbers) else None


def _kernel_slugs(run: str, session: int, attempt: int) -> tuple[str, str]:
    """Return the slug of an attempt's kernel, and the slug that earlier versions used: that of its dataset."""
    return attempt_kernel_slug(run, session, attempt), attempt_dataset_slug(run, session, attempt)


@dataclass(frozen=True)
class PushedKernel:
    """A version of a kernel on the account."""

    slug: str
    version: int = 1

    def __str__(self) -> str:
        return f"{self.slug}/v{self.version}"


def pushed_kernels(run: str, session: int, attempt: int, handle: str | None) -> tuple[PushedKernel, ...]:
    """Return the kernels that an attempt may have: the one that its handle names, else all candidates, the likeliest first.

    The handle is missing when the answer to the push was lost. An earlier version may have pushed the kernel, under the slug
    that it used.
    """
    said = _HANDLE.fullmatch(handle or "")
    if said is not None:
        return (PushedKernel(said["slug"], int(said["version"])),)
    return tuple(PushedKernel(slug) for slug in _kernel_slugs(run, session, attempt))


def control_slug(run: str) -> str:
    """Return the slug of a run's control dataset, which holds the stop flag and what `adopt` reads first."""
    return f"{PREFIX}-{run}-control"


def weights_slug(run: str) -> str:
    """Return the default slug of the dataset for a run's published weights."""
    return f"{PREFIX}-{run}-weights"


def model_slug(run: str) -> str:
    """Return the slug of the Kaggle model for a run's published weights."""
    return f"{PREFIX}-{run}-model"


def data_slug(data_sha256: str, part: int) -> str:
    """Return the slug of the dataset of one part of prepared data; part 0 holds the manifest and the tokenizer."""
    return f"{PREFIX}-data-{data_sha256[:16]}-p{part:02d}"


class NameKind(StrEnum):
    """The kind of thing that a name belongs to."""

    ATTEMPT_DATASET = "the dataset of an attempt"
    ATTEMPT_KERNEL = "the kernel of an attempt"
    CONTROL = "the control dataset of a run"
    WEIGHTS = "the dataset of a run's weights"
    MODEL = "the model of a run's weights"
    DATA = "a dataset of prepared data"
    CANARY = "what gemma-orch doctor makes"


_KINDS = (
    (NameKind.ATTEMPT_DATASET, re.compile(r".+-s\d{3,}a\d+")),
    (NameKind.ATTEMPT_KERNEL, re.compile(r".+-(?:s\d{3,}a\d+-k|k\d{3,}a\d+)")),
    (NameKind.CONTROL, re.compile(r".+-control")),
    (NameKind.WEIGHTS, re.compile(r".+-weights")),
    (NameKind.MODEL, re.compile(r".+-model")),
    (NameKind.DATA, re.compile(r"data-[0-9a-f]{16}-p\d{2,}")),
    (NameKind.CANARY, re.compile(r"canary(?:-facts|-limit)?")),
)
"""Pattern of the part after the prefix, by kind; a name matches at most one kind, for any name of a run."""


def kind_of(slug: str) -> NameKind | None:
    """Return the kind that a slug names, or None if it is not a name of gemma-orch."""
    prefix = f"{PREFIX}-"
    rest = slug.removeprefix(prefix) if slug.startswith(prefix) else ""
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(rest)), None)


class VersionNote(Document):
    """The notes of a dataset version that holds a checkpoint, so that one read of the dataset identifies each version."""

    session: int
    attempt: int
    fence: int
    step: int
    checkpoint: CheckpointId
    manifest_sha256: str

    def __str__(self) -> str:
        name = attempt_name(self.session, self.attempt)
        return f"gemma-orch {name} fence {self.fence} step {self.step} {self.checkpoint} {self.manifest_sha256}"

    @classmethod
    def parse(cls, text: str) -> VersionNote | None:
        """Return the note in a text, or None if it is not a note or names a checkpoint that its attempt cannot have saved."""
        note, named = _read(text) or (None, "")
        return note if note is not None and note.checkpoint == named else None


def misnamed(text: str) -> tuple[VersionNote, str] | None:
    """Return the corrected note and the named checkpoint if a note names a checkpoint that its attempt cannot have saved."""
    note, named = _read(text) or (None, "")
    return (note, named) if note is not None and note.checkpoint != named else None


def _read(text: str) -> tuple[VersionNote, str] | None:
    """Return the note built from a text's numbers, and the checkpoint that the text names."""
    match = _NOTE.fullmatch(text.strip())
    numbers = parse_attempt_name(match["attempt"]) if match else None
    if match is None or numbers is None:
        return None
    step = int(match["step"])
    note = VersionNote(
        session=numbers[0],
        attempt=numbers[1],
        fence=int(match["fence"]),
        step=step,
        checkpoint=checkpoint_id(step, *numbers),
        manifest_sha256=match["sha"],
    )
    return note, match["checkpoint"]


def checkpoint_file_names(checkpoint_id: str, names: tuple[str, ...]) -> dict[str, str]:
    """Return the dataset's name of each file of a checkpoint, by its own name; the names are unique over all checkpoints.

    Raises:
        CorruptCheckpointError: it is not a checkpoint's id.
    """
    check_checkpoint_id(checkpoint_id)
    return {name: f"{checkpoint_id}.{name}" for name in names}
