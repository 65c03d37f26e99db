"""Datasets as wholes of files: made once, versions published once, believed only when their list of files is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from state.clock import Clock
from state.kaggle.api import KaggleApi
from state.kaggle.errors import CorruptUploadError, ProcessingFailedError, SlugTakenError
from state.kaggle.sending import LocalFile, Sending, SentMark, Uploads, patiently, wait_for

__all__ = ["LocalFile", "begin_version", "ensure_dataset", "publish_version", "published_version", "wait_until_ready"]

_UNSHOWN_LIMIT_S = 3600.0  # reads lag by minutes; a dataset that Kaggle has removed is never shown, and keeps its name


def ensure_dataset(
    api: KaggleApi,
    slug: str,
    files: Sequence[LocalFile],
    *,
    resume_dir: Path,
    deadline_s: float,
    clock: Clock,
    settle_s: float = 600.0,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Make a private dataset of these files, unless there is one of this name, which is left as it is.

    It is not waited for: see `wait_until_ready`.

    Args:
        api: The account.
        slug: Of the dataset.
        files: Of its first version, in order.
        resume_dir: Where begun uploads are remembered.
        deadline_s: Monotonic seconds of the clock at which to give up.
        clock: Where the time comes from.
        settle_s: Seconds for which a read may lag behind what was written.
        on_bytes: Told how many more bytes have been sent.

    Raises:
        AmbiguousError: whether it was made is unknown.
        TemporaryError: it could not be made until the deadline.
        SlugTakenError: a kernel or a model has the name, or a dataset that Kaggle does not show.
        UserError: Kaggle refuses it.
    """
    taken = SentMark(resume_dir, slug, "the name is taken", clock)
    if patiently(lambda: api.dataset(slug), clock, deadline_s) is not None:
        taken.remove()
        return
    uploads = Uploads(api, files, resume_dir, deadline_s, clock, on_bytes)

    def send(tokens: Sequence[str]) -> None:
        try:
            api.create_dataset(slug, tokens)
            taken.remove()
        except SlugTakenError as error:
            if not error.may_be("dataset"):
                raise
            _check_it_comes(error, taken)  # an earlier send arrived, or the look before was older than the dataset

    Sending(clock, deadline_s, settle_s, uploads, send, lambda: api.dataset(slug) is not None).do()


def _check_it_comes(error: SlugTakenError, taken: SentMark) -> None:
    """Check that a dataset whose name is taken was not waited for too long.

    Raises:
        SlugTakenError: it was.
    """
    if not taken.is_written():
        taken.write(is_accepted=False)
    elif taken.left_s(_UNSHOWN_LIMIT_S) <= 0:
        raise SlugTakenError(
            f"{error.what}; for an hour Kaggle has not shown that dataset",
            by=error.by,
            expected=error.expected,
            remedy="Kaggle keeps the names of datasets that it has removed: take another one. gemma-orch start takes that of the "
            "run's next attempt; a run's own is its --name",
        ) from error


def wait_until_ready(api: KaggleApi, slug: str, *, clock: Clock, processing_limit_s: float) -> None:
    """Wait until the first version of a dataset is ready.

    Raises:
        ProcessingFailedError: Kaggle failed to process it.
        TemporaryError: it is not ready after so many seconds.
    """

    def is_ready() -> bool | None:
        status = api.dataset_status(slug)
        if status == "FAILED":
            raise ProcessingFailedError(slug, None, remedy="delete the dataset, and make it again")
        return status == "READY" or None

    wait_for(is_ready, f"dataset {slug} is not READY", clock, processing_limit_s)


def begin_version(
    api: KaggleApi,
    slug: str,
    files: Sequence[LocalFile],
    notes: str,
    *,
    delete_old: bool,
    resume_dir: Path,
    deadline_s: float,
    clock: Clock,
    settle_s: float = 600.0,
    processing_limit_s: float = 3600.0,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Upload files and let Kaggle begin to make a version of them, once as far as can be seen.

    Args:
        api: The account.
        slug: Of the dataset.
        files: All of the version's files, in order.
        notes: The version's notes, unique: by them an answer that was lost is made up for.
        delete_old: Whether older versions are deleted when this one is ready.
        resume_dir: Where begun uploads are remembered.
        deadline_s: Monotonic seconds of the clock at which to give up.
        clock: Where the time comes from.
        settle_s: Seconds to look for the notes before a version is sent again, and for which a refusal may be because of another
            version that is still processed.
        processing_limit_s: Seconds for which a version that Kaggle has accepted is not sent again, listed or not.
        on_bytes: Told how many more bytes have been sent.

    Raises:
        AmbiguousError: whether the version was made is unknown.
        TemporaryError: it could not be made until the deadline; uploads go on where they broke off.
        DeniedError: these credentials may not make it.
        UserError: Kaggle refuses it.
    """
    mark = SentMark(resume_dir, slug, notes, clock)
    if mark.is_accepted() and mark.left_s(processing_limit_s) > 0:
        return
    uploads = Uploads(api, files, resume_dir, deadline_s, clock, on_bytes)

    def send(tokens: Sequence[str]) -> None:
        api.create_version(slug, tokens, notes, delete_old=delete_old)

    Sending(clock, deadline_s, settle_s, uploads, send, lambda: _is_listed(api, slug, notes), mark).do()


def published_version(api: KaggleApi, slug: str, files: Sequence[LocalFile], notes: str) -> int | None:
    """Return the number of the version that has these notes and is ready with exactly these files; None: not (yet).

    Raises:
        TemporaryError: Kaggle could not be asked.
        ProcessingFailedError: Kaggle failed to process it.
        CorruptUploadError: it stands, with other files.
    """
    dataset = api.dataset(slug)
    if dataset is None:
        return None
    named = sorted((version for version in dataset.versions if version.notes == notes), key=lambda v: v.number, reverse=True)
    standing = [version.number for version in named if version.status.upper() != "FAILED"]
    if named and not standing:
        raise ProcessingFailedError(slug, named[0].number, remedy="publish it again")
    if not standing or not api.dataset_is_ready(slug):
        return None
    wanted = {file.name: file.size_bytes for file in files}
    differences = []
    for number in standing:
        found = api.dataset_files(slug, number)
        if found is not None and found != wanted:
            found = api.dataset_files(slug, number)  # one wrong answer is no wrong version
        if found is None:
            return None
        if found == wanted:
            return number
        differences.append(_difference(found, wanted))
    raise CorruptUploadError(
        slug,
        standing[0],
        f"dataset {slug} version {standing[0]} does not have the files that were uploaded: {differences[0]}",
        remedy="publish it again; this version stays unused",
    )


def publish_version(
    api: KaggleApi,
    slug: str,
    files: Sequence[LocalFile],
    notes: str,
    *,
    delete_old: bool,
    resume_dir: Path,
    deadline_s: float,
    clock: Clock,
    processing_limit_s: float,
    settle_s: float = 600.0,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> int:
    """Publish a version, and wait until it stands with exactly these files; return its number.

    Calling it again with the same notes, after any failure, makes no second version as far as can be seen.

    Args:
        api: The account.
        slug: Of the dataset.
        files: All of the version's files, in order.
        notes: The version's notes, unique.
        delete_old: Whether older versions are deleted when this one is ready.
        resume_dir: Where begun uploads are remembered.
        deadline_s: Monotonic seconds of the clock at which uploading gives up.
        clock: Where the time comes from.
        processing_limit_s: Longest wait, after that, for Kaggle to process it.
        settle_s: Seconds for which a read may lag behind what was written.
        on_bytes: Told how many more bytes have been sent.

    Raises:
        TemporaryError: it does not stand (yet).
        CorruptUploadError: it stands, with other files.
        UserError: Kaggle refuses it.
    """
    spoiled: set[int | None] = set()

    def look() -> int | None:
        try:
            return published_version(api, slug, files, notes)
        except (CorruptUploadError, ProcessingFailedError) as error:
            if error.version not in spoiled:
                raise
            return None

    mark = SentMark(resume_dir, slug, notes, clock)
    try:
        number = patiently(look, clock, deadline_s)
    except (CorruptUploadError, ProcessingFailedError) as error:  # of an earlier call, which this one makes up for
        spoiled.add(error.version)
        mark.remove()
        number = None
    if number is not None:
        return number
    if spoiled or not patiently(lambda: _is_listed(api, slug, notes), clock, deadline_s):
        begin_version(
            api,
            slug,
            files,
            notes,
            delete_old=delete_old,
            resume_dir=resume_dir,
            deadline_s=deadline_s,
            clock=clock,
            settle_s=settle_s,
            processing_limit_s=processing_limit_s,
            on_bytes=on_bytes,
        )
    number = wait_for(look, f"a version of dataset {slug}, {notes!r}, does not stand", clock, processing_limit_s)
    mark.remove()
    return number


def _is_listed(api: KaggleApi, slug: str, notes: str) -> bool:
    dataset = api.dataset(slug)
    return dataset is not None and any(version.notes == notes for version in dataset.versions)


def _difference(found: dict[str, int], wanted: dict[str, int]) -> str:
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    both = sorted(found.keys() & wanted.keys())
    other = [f"{name} ({found[name]} bytes, not {wanted[name]})" for name in both if found[name] != wanted[name]]
    parts = (("missing", missing), ("not wanted", extra), ("of another size", other))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in parts if names)
