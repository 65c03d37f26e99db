"""Publish weights as a private Kaggle model too: one instance for each format, one version for each checkpoint.

A marker file in each version identifies the publication by its name, so that one list of files shows whether a publication is
there and complete. Version notes would not do: Kaggle shows only those of the newest version, and the first version has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.backends.kaggle.publish.card import CARD_NAME, card_without_files
from orchestrator.backends.kaggle.publish.dataset import FORMATS, Published, publication_folder, upload_limit_s
from state import files
from state.errors import DataError, UserError
from state.kaggle.names import model_slug
from state.kaggle.records import ModelForm
from state.quantities import format_size

if TYPE_CHECKING:
    from orchestrator.ports import Ports
    from state.clock import Clock
    from state.kaggle.api import KaggleApi
    from state.kaggle.model_calls import ModelTexts
    from state.kaggle.sending import LocalFile, SentMark
    from state.ledger import RunRecord

_FRAMEWORKS = {"gemma-pytorch": "MODEL_FRAMEWORK_PY_TORCH", "hf": "MODEL_FRAMEWORK_TRANSFORMERS"}
_READERS = {"gemma-pytorch": "for google/gemma_pytorch", "hf": "for transformers"}
_MARKER_PREFIX = "published-"
_SETTLE_S = 600.0
_PROCESSING_LIMIT_S = 3600.0


@dataclass(frozen=True)
class PublishedForm:
    """An instance of the model, and its version with the weights."""

    form: ModelForm
    version: int
    is_new: bool


def publish_model(
    api: KaggleApi,
    ports: Ports,
    record: RunRecord,
    published: Published,
    *,
    licence: str,
    say: Callable[[str], None] = lambda _text: None,
) -> list[PublishedForm]:
    """Publish the weights in a dataset as the run's model, unless the model already has them.

    Files that `publish` kept in this home are uploaded from there; all others are downloaded from the dataset first.

    Raises:
        UserError: Kaggle refuses the model, or an instance of it holds something else.
        DataError: the files on the account differ from the uploaded ones.
        TemporaryError: Kaggle is unavailable or slow; the same command resumes.
    """
    publication = published.publication
    assert publication.checkpoint is not None, "a finished publication names its checkpoint"
    folder = publication_folder(ports, record.name, record.checkpoints[publication.checkpoint])
    publisher = _ModelPublisher(api, ports.clock, folder, published, say)
    standing = [publisher.publish(model_slug(record.name), form, licence) for form in FORMATS]
    files.remove_tree(folder)
    return standing


@dataclass(frozen=True)
class _Job:
    """One instance of the model to publish."""

    form: ModelForm
    card: str
    licence: str
    files: tuple[LocalFile, ...]
    uploads: Path
    """Folder of this instance's resumable uploads; files of different instances may share names and sizes."""
    deadline_s: float

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


class _ModelPublisher:
    """Publishes one publication as the instances of a model."""

    def __init__(self, api: KaggleApi, clock: Clock, folder: Path, published: Published, say: Callable[[str], None]) -> None:
        self._api = api
        self._clock = clock
        self._folder = folder
        self._published = published
        self._say = say
        self._marker = f"{_MARKER_PREFIX}{published.publication.digest()[:16]}.json"

    def publish(self, model: str, name: str, licence: str) -> PublishedForm:
        """Publish one format unless it is already there, and wait until its version is complete."""
        from state.kaggle.errors import CorruptUploadError
        from state.kaggle.sending import SentMark, patiently, wait_for

        job = self._job(ModelForm(model, _FRAMEWORKS[name], name), licence)
        mark = SentMark(job.uploads, str(job.form), self._marker, self._clock)
        spoiled: int | None = None
        try:
            version = patiently(lambda: self._standing(job), self._clock, job.deadline_s)
        except CorruptUploadError as error:  # an earlier call left it; this call uploads a new version
            spoiled, version = error.version, None
            mark.remove()
        if version is not None:
            return PublishedForm(job.form, version, is_new=False)
        if not (mark.is_accepted() and mark.left_s(_PROCESSING_LIMIT_S) > 0):
            self._send(job, mark)
        what = f"the version of model {job.form} is not complete"
        version = wait_for(lambda: self._standing(job, unless=spoiled), what, self._clock, _PROCESSING_LIMIT_S)
        mark.remove()
        return PublishedForm(job.form, version, is_new=True)

    def _job(self, form: ModelForm, licence: str) -> _Job:
        """Return the job of one format: the names, sizes and local paths of its files."""
        from state.kaggle.sending import LocalFile

        publication, place = self._published.publication, self._folder / "model" / form.slug
        place.mkdir(parents=True, exist_ok=True)
        card = card_without_files(
            self._source(CARD_NAME, self._folder / CARD_NAME, place / "card.md").read_text(encoding="utf-8")
        )
        own = {CARD_NAME: card.encode(), self._marker: publication.to_json()}
        for name, content in own.items():
            files.write_atomically(place / name, content)
        prefix = f"{form.slug}."
        sizes = {
            name.removeprefix(prefix): file.size_bytes for name, file in publication.files.items() if name.startswith(prefix)
        }
        sizes |= {name: len(content) for name, content in own.items()}
        wanted = tuple(LocalFile(place / name, name, size) for name, size in sizes.items())
        deadline_s = self._clock.monotonic() + upload_limit_s(sum(sizes.values()))
        return _Job(form, card, licence, wanted, self._folder / "model-uploads" / form.slug, deadline_s)

    def _here(self, form: str, file: LocalFile) -> LocalFile:
        """Return a file whose bytes are on this machine."""
        from state.kaggle.sending import LocalFile

        if file.name in (CARD_NAME, self._marker):
            return file
        return LocalFile(
            self._source(f"{form}.{file.name}", self._folder / form / file.name, file.path), file.name, file.size_bytes
        )

    def _source(self, name: str, exported: Path, target: Path) -> Path:
        """Return the path of a published file: as exported, else downloaded from the dataset to `target`.

        Raises:
            DataError: the downloaded bytes have another digest.
        """
        sha256 = self._published.publication.files[name].sha256
        for path in (exported, target):
            if path.is_file() and files.sha256_of_file(path) == sha256:
                return path
        slug, version = self._published.slug, self._published.version
        found = self._api.download(slug, version, name, target)
        if found != sha256:
            raise DataError(f"{name} in version {version} of dataset {slug} has sha256 {found[:12]}", expected=sha256[:12])
        return target

    def _current(self, form: ModelForm) -> tuple[int, dict[str, int]] | None:
        """Return the newest version of an instance and its files, (0, {}) while the first is processed; None without an instance.

        Raises:
            UserError: the instance holds something else.
        """
        version = self._api.model_version(form)
        if version is None:
            return None
        found = self._api.model_files(form, version) if version else None
        if found and not any(name.startswith(_MARKER_PREFIX) for name in found):
            raise UserError(
                f"model {form} already exists for something else: it has no {_MARKER_PREFIX}*.json",
                expected="a model that gemma-orch publish has made",
                remedy=f"delete that variation of the model on kaggle.com, or publish without --model: dataset "
                f"{self._published.slug} has the weights",
            )
        return version, found or {}

    def _standing(self, job: _Job, *, unless: int | None = None) -> int | None:
        """Return the version with exactly the job's files; None if there is none.

        Raises:
            CorruptUploadError: this publication's version has other files.
        """
        from state.kaggle.errors import CorruptUploadError

        form, sizes = job.form, {file.name: file.size_bytes for file in job.files}
        current = self._current(form)
        if current is not None and self._marker in current[1] and current[1] != sizes:
            current = self._current(form)  # a single answer may be stale
        if current is None or self._marker not in current[1]:
            return None
        version, found = current
        if found == sizes:
            return version
        if version == unless:
            return None
        raise CorruptUploadError(
            str(form),
            version,
            f"version {version} of model {form} differs from the uploaded files: "
            + ", ".join(sorted(name for name, _ in found.items() ^ sizes.items())),
            remedy="publish it again, as a new version",
        )

    def _make_model(self, model: str, card: str, deadline_s: float) -> None:
        from state.kaggle.errors import SlugTakenError
        from state.kaggle.sending import Sending, Uploads, patiently

        if patiently(lambda: self._api.has_model(model), self._clock, deadline_s):
            return

        def send(_tokens: Sequence[str]) -> None:
            try:
                self._api.create_model(model, card)
            except SlugTakenError as error:  # an earlier request succeeded, or the read before was stale
                if not error.may_be("model"):
                    raise

        nothing = Uploads(self._api, (), self._folder, deadline_s, self._clock, lambda _: None)
        Sending(self._clock, deadline_s, _SETTLE_S, nothing, send, lambda: self._api.has_model(model)).do()

    def _send(self, job: _Job, mark: SentMark) -> None:
        """Upload a format's files and create a version of them; before a retry, check that no version has appeared."""
        from state.kaggle.errors import SlugTakenError
        from state.kaggle.model_calls import ModelTexts
        from state.kaggle.sending import Sending, Uploads, patiently

        form, deadline_s = job.form, job.deadline_s
        is_there = patiently(lambda: self._current(form), self._clock, deadline_s) is not None
        self._make_model(form.model, job.card, deadline_s)
        local = [self._here(form.slug, file) for file in job.files]
        publication = self._published.publication
        notes = f"gemma-orch weights of {publication.run} step {publication.step} {self._marker}"
        overview = f"Weights of {publication.run} {_READERS[form.slug]}"

        def send(tokens: Sequence[str]) -> None:
            if not is_there:
                with contextlib.suppress(SlugTakenError):  # the read before was stale: the instance exists
                    self._make_instance(form, tokens, ModelTexts(overview, job.card, job.licence))
                    return
            self._api.create_model_version(form, tokens, notes)

        def has_happened() -> bool:
            current = self._current(form)
            return current is not None and self._marker in current[1]

        self._say(f"uploading {len(local)} files, {format_size(job.total_bytes)}, to model {form}")
        uploads = Uploads(self._api, local, job.uploads, deadline_s, self._clock, lambda _: None, "MODEL")
        Sending(self._clock, deadline_s, _SETTLE_S, uploads, send, has_happened, mark).do()

    def _make_instance(self, form: ModelForm, tokens: Sequence[str], texts: ModelTexts) -> None:
        from state.kaggle.errors import CredentialsError

        try:
            self._api.create_model_instance(form, tokens, texts)
        except UserError as error:
            if "licen" not in error.what.lower() or isinstance(error, CredentialsError):
                raise
            raise UserError(error.what, remedy="name a licence that Kaggle has, such as --model-licence 'Apache 2.0'") from error
