"""Put published weights into a private Kaggle model as well: one instance for each form, a version for each checkpoint.

A version says by the name of one of its files which publication it is: Kaggle shows the notes of no version but the newest one,
and the first version has none. So the list of files is the look that answers every question: whether it is there, and whole.
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
    """An instance of the model, and the version that has the weights."""

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
    """Put what a dataset of weights holds into the run's model, or find it there.

    What `publish` was told to keep is sent from where it lies; what does not lie here any more comes from the dataset.

    Raises:
        UserError: Kaggle refuses it, or an instance of the model holds something else.
        DataError: what is on the account is not what was sent.
        TemporaryError: Kaggle does not do its part now; the same command goes on.
    """
    publication = published.publication
    assert publication.checkpoint is not None, "what was published is of a checkpoint"
    folder = publication_folder(ports, record.name, record.checkpoints[publication.checkpoint])
    publisher = _ModelPublisher(api, ports.clock, folder, published, say)
    standing = [publisher.publish(model_slug(record.name), form, licence) for form in FORMATS]
    files.remove_tree(folder)
    return standing


@dataclass(frozen=True)
class _Job:
    """One form that is to stand."""

    form: ModelForm
    card: str
    licence: str
    files: tuple[LocalFile, ...]
    uploads: Path
    """Where begun uploads are remembered: the names of the forms' files, and perhaps their sizes, are the same."""
    deadline_s: float

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


class _ModelPublisher:
    """Puts one publication into the instances of a model."""

    def __init__(self, api: KaggleApi, clock: Clock, folder: Path, published: Published, say: Callable[[str], None]) -> None:
        self._api = api
        self._clock = clock
        self._folder = folder
        self._published = published
        self._say = say
        self._marker = f"{_MARKER_PREFIX}{published.publication.digest()[:16]}.json"

    def publish(self, model: str, name: str, licence: str) -> PublishedForm:
        """See a form stand, made now if it was not before."""
        from state.kaggle.errors import CorruptUploadError
        from state.kaggle.sending import SentMark, patiently, wait_for

        job = self._job(ModelForm(model, _FRAMEWORKS[name], name), licence)
        mark = SentMark(job.uploads, str(job.form), self._marker, self._clock)
        spoiled: int | None = None
        try:
            version = patiently(lambda: self._standing(job), self._clock, job.deadline_s)
        except CorruptUploadError as error:  # of an earlier call, which this one makes up for
            spoiled, version = error.version, None
            mark.remove()
        if version is not None:
            return PublishedForm(job.form, version, is_new=False)
        if not (mark.is_accepted() and mark.left_s(_PROCESSING_LIMIT_S) > 0):
            self._send(job, mark)
        what = f"the version of model {job.form} does not stand"
        version = wait_for(lambda: self._standing(job, unless=spoiled), what, self._clock, _PROCESSING_LIMIT_S)
        mark.remove()
        return PublishedForm(job.form, version, is_new=True)

    def _job(self, form: ModelForm, licence: str) -> _Job:
        """Say what is to stand: its files' names and sizes, and where they are to lie here."""
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
        """Return a file with its bytes here."""
        from state.kaggle.sending import LocalFile

        if file.name in (CARD_NAME, self._marker):
            return file
        return LocalFile(
            self._source(f"{form}.{file.name}", self._folder / form / file.name, file.path), file.name, file.size_bytes
        )

    def _source(self, name: str, exported: Path, target: Path) -> Path:
        """Return where the bytes of a published file lie: as they were exported, or fetched from the dataset.

        Raises:
            DataError: the dataset has other ones.
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
        """Return the newest version of an instance and its files; none of either while the first is processed.

        Raises:
            UserError: it holds something else.
        """
        version = self._api.model_version(form)
        if version is None:
            return None
        found = self._api.model_files(form, version) if version else None
        if found and not any(name.startswith(_MARKER_PREFIX) for name in found):
            raise UserError(
                f"model {form} exists and was not made by this command",
                expected=f"a file {_MARKER_PREFIX}*.json among its files",
                remedy=f"delete that variation of the model on kaggle.com, or publish without --model: dataset "
                f"{self._published.slug} has the weights",
            )
        return version, found or {}

    def _standing(self, job: _Job, *, unless: int | None = None) -> int | None:
        """Return the version that has exactly these files.

        Raises:
            CorruptUploadError: the version of this publication has other ones.
        """
        from state.kaggle.errors import CorruptUploadError

        form, sizes = job.form, {file.name: file.size_bytes for file in job.files}
        current = self._current(form)
        if current is not None and self._marker in current[1] and current[1] != sizes:
            current = self._current(form)  # one wrong answer is no wrong version
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
            f"version {version} of model {form} has other files than were sent: "
            + ", ".join(sorted(name for name, _ in found.items() ^ sizes.items())),
            remedy="publish it again; this version stays unused",
        )

    def _make_model(self, model: str, card: str, deadline_s: float) -> None:
        from state.kaggle.errors import SlugTakenError
        from state.kaggle.sending import Sending, Uploads, patiently

        if patiently(lambda: self._api.has_model(model), self._clock, deadline_s):
            return

        def send(_tokens: Sequence[str]) -> None:
            try:
                self._api.create_model(model, card)
            except SlugTakenError as error:  # an earlier send arrived, or the look before was older than the model
                if not error.may_be("model"):
                    raise

        nothing = Uploads(self._api, (), self._folder, deadline_s, self._clock, lambda _: None)
        Sending(self._clock, deadline_s, _SETTLE_S, nothing, send, lambda: self._api.has_model(model)).do()

    def _send(self, job: _Job, mark: SentMark) -> None:
        """Upload a form's files and let Kaggle make a version of them, once as far as can be seen."""
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
                with contextlib.suppress(SlugTakenError):  # the look before was older than the instance
                    self._make_instance(form, tokens, ModelTexts(overview, job.card, job.licence))
                    return
            self._api.create_model_version(form, tokens, notes)

        def has_happened() -> bool:
            current = self._current(form)
            return current is not None and self._marker in current[1]

        self._say(f"sending {len(local)} files, {format_size(job.total_bytes)}, to model {form}")
        uploads = Uploads(self._api, local, job.uploads, deadline_s, self._clock, lambda _: None, "MODEL")
        Sending(self._clock, deadline_s, _SETTLE_S, uploads, send, has_happened, mark).do()

    def _make_instance(self, form: ModelForm, tokens: Sequence[str], texts: ModelTexts) -> None:
        from state.kaggle.errors import CredentialsError

        try:
            self._api.create_model_instance(form, tokens, texts)
        except UserError as error:
            if "licen" not in error.what.lower() or isinstance(error, CredentialsError):
                raise
            raise UserError(error.what, remedy="name one that Kaggle has: --model-licence 'Apache 2.0', say") from error
