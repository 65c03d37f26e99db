"""The calls about models: a model has an instance for each form of its weights, and an instance has versions of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from state.errors import AmbiguousError, TemporaryError
from state.kaggle import answers
from state.kaggle.answers import refusal
from state.kaggle.calls import Calls
from state.kaggle.records import ModelForm
from state.kaggle.sdk_requests import Enumerated, Nested

_FILES_A_PAGE = 200


@dataclass(frozen=True)
class ModelTexts:
    """The texts that Kaggle shows with an instance."""

    overview: str
    """One line."""
    usage: str
    """Markdown."""
    license_name: str


class ModelCalls(Calls):
    """See `KaggleApi`."""

    def has_model(self, slug: str) -> bool:
        """Return whether the account has a model with this slug."""
        what = f"looking at model {slug}"
        fields = {"owner_slug": self.user, "model_slug": slug}
        answer = self._transport.read(what, answers.ModelAnswer, "models", "get_model", **fields)
        if answer is not None and answer.slug != slug:
            raise TemporaryError(f"{what} failed: the answer is about {answer.slug!r}")
        return answer is not None

    def model_version(self, form: ModelForm) -> int | None:
        """Return an instance's newest version, 0 if no version is ready, or None if the instance is missing."""
        what = f"looking at model {form}"
        answer = self._transport.read(what, answers.ModelInstanceAnswer, "models", "get_model_instance", **self._of(form))
        if answer is None:
            return None
        if answer.slug != form.slug:
            raise TemporaryError(f"{what} failed: the answer is about {answer.slug!r}")
        return answer.version_number or 0

    def model_files(self, form: ModelForm, version: int) -> dict[str, int] | None:
        """Return the size in bytes of each file of an instance's version, by name, or None if the version is missing."""
        what = f"listing the files of model {form} version {version}"
        fields = {**self._of(form), "version_number": version, "page_size": _FILES_A_PAGE}
        pages = self._pages(what, answers.ModelFilesPage, "models", "list_model_instance_version_files", fields)
        return None if pages is None else {file.name: file.size for page in pages for file in page.files}

    def create_model(self, slug: str, description: str) -> None:
        """Create a private model without instances; its title is its slug.

        Raises:
            AmbiguousError: it is unknown whether the model was created.
            SlugTakenError: the name is taken.
            UserError: Kaggle refuses the request.
        """
        self._create(
            f"making model {slug}",
            "create_model",
            owner_slug=self.user,
            slug=slug,
            title=slug,
            is_private=True,
            description=description,
        )

    def create_model_instance(self, form: ModelForm, tokens: Sequence[str], texts: ModelTexts) -> None:
        """Create an instance of a model; its first version holds the uploaded files.

        Raises:
            AmbiguousError: it is unknown whether the instance was created.
            SlugTakenError: the name is taken.
            UserError: Kaggle refuses the request.
        """
        body = {
            "instance_slug": form.slug,
            "framework": _framework(form),
            "overview": texts.overview,
            "usage": texts.usage,
            "license_name": texts.license_name,
            "fine_tunable": True,
            "files": _new_files(tokens),
        }
        self._create(
            f"making model {form}",
            "create_model_instance",
            owner_slug=self.user,
            model_slug=form.model,
            body=Nested("ApiCreateModelInstanceRequestBody", body),
        )

    def create_model_version(self, form: ModelForm, tokens: Sequence[str], notes: str) -> None:
        """Create the next version of an instance; it holds these uploaded files only.

        Raises:
            AmbiguousError: it is unknown whether the version was created.
            DeniedError: not allowed, or not yet.
            UserError: Kaggle refuses the request.
        """
        body = Nested("ApiCreateModelInstanceVersionRequestBody", {"version_notes": notes, "files": _new_files(tokens)})
        self._create(f"making a version of model {form}", "create_model_instance_version", **self._of(form), body=body)

    def _create(self, what: str, method: str, **fields: object) -> None:
        answer = self._transport.write(what, answers.CreateModelAnswer, "models", method, **fields)
        if answer.error:
            raise refusal(what, answer.error)
        if not answer.ref:
            raise AmbiguousError(f"whether {what} happened is unknown: no error, and no ref", remedy="look before trying again")

    def _of(self, form: ModelForm) -> dict[str, object]:
        return {
            "owner_slug": self.user,
            "model_slug": form.model,
            "framework": _framework(form),
            "instance_slug": form.slug,
        }


def _framework(form: ModelForm) -> Enumerated:
    return Enumerated("ModelFramework", form.framework)


def _new_files(tokens: Sequence[str]) -> list[Nested]:
    return [Nested("ApiDatasetNewFile", {"token": token}) for token in tokens]
