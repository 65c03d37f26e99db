"""The calls about models: instances of a model, and their versions, which are full snapshots like those of datasets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kaggle_emulator.blobs import Blobs
from tests.kaggle_emulator.calls import Answer, Call, Handler, page
from tests.kaggle_emulator.clock import iso
from tests.kaggle_emulator.dataset_model import Version, link
from tests.kaggle_emulator.errors import denied
from tests.kaggle_emulator.namespace import Namespace
from tests.kaggle_emulator.settings import Settings

LICENCES = frozenset({"Apache 2.0", "CC0: Public Domain", "MIT", "Other"})


@dataclass
class Instance:
    """One form of a model's weights."""

    slug: str
    framework: str
    texts: dict[str, Any]
    created_at: float
    versions: list[Version] = field(default_factory=list)

    def current(self, now: float) -> Version | None:
        """Give the newest version that is ready."""
        return next((version for version in reversed(self.versions) if version.is_current_candidate(now)), None)


@dataclass
class Model:
    """A named set of instances."""

    number: int
    owner: str
    slug: str
    private: bool
    description: str
    created_at: float
    instances: list[Instance] = field(default_factory=list)

    @property
    def ref(self) -> str:
        return f"{self.owner}/{self.slug}"


class Models:
    """All models of all users; only what their owners ask for is answered."""

    def __init__(self, folder: Path, settings: Settings, blobs: Blobs, namespace: Namespace) -> None:
        self._folder = folder
        self._settings = settings
        self._blobs = blobs
        self._all: list[Model] = []
        self._namespace = namespace
        namespace.add("model", self._has)

    def routes(self) -> dict[str, Handler]:
        return {
            "CreateModel": self.create,
            "CreateModelInstance": self.create_instance,
            "CreateModelInstanceVersion": self.create_version,
            "GetModel": self.get,
            "GetModelInstance": self.get_instance,
            "ListModelInstanceVersionFiles": self.list_files,
        }

    def all(self) -> list[Model]:
        return list(self._all)

    # What changes something.

    def create(self, call: Call) -> Answer:
        owner, slug = call.text("ownerSlug"), call.text("slug")
        if owner != call.actor.user or call.actor.session is not None:
            raise denied("models.create")
        if self._has(f"{owner}/{slug}", call.now):
            return _refusal(f'The requested slug "{slug}" is already in use by a model.')
        self._namespace.check_free("model", f"{owner}/{slug}", call.text("title"), call.now)
        is_private = bool(call.body.get("isPrivate", True))
        model = Model(len(self._all) + 1, owner, slug, is_private, call.text("description"), call.now)
        self._all.append(model)
        call.effect = f"made model {model.ref}"
        return _accepted(model.number, model.ref)

    def create_instance(self, call: Call) -> Answer:
        model = self._model(call, "models.update")
        body = call.body.get("body") or {}
        slug, framework = str(body.get("instanceSlug") or ""), str(body.get("framework") or "")
        if any((each.slug, each.framework) == (slug, framework) for each in model.instances):
            return _refusal(f'The requested slug "{slug}" is already in use by an instance of the model.')
        if body.get("licenseName") not in LICENCES:
            return _refusal(f'The license "{body.get("licenseName")}" is not one of those that models may have.')
        texts = {name: body.get(name) or "" for name in ("overview", "usage", "licenseName")}
        instance = Instance(slug, framework, texts, call.now)
        refused = self._add_version(model, instance, body, call)
        if refused is not None:
            return refused
        model.instances.append(instance)
        return _accepted(model.number, f"{model.ref}/{framework}/{slug}")

    def create_version(self, call: Call) -> Answer:
        model, instance = self._instance(call, "models.update")
        refused = self._add_version(model, instance, call.body.get("body") or {}, call)
        return refused or _accepted(model.number, f"{model.ref}/{instance.framework}/{instance.slug}")

    def _add_version(self, model: Model, instance: Instance, body: dict[str, Any], call: Call) -> Answer | None:
        """Make the next version of the blobs that the body names, or refuse in words."""
        blobs = [self._blobs.find(str(file.get("token"))) for file in body.get("files") or []]
        taken = [
            blob for blob in blobs if blob is not None and blob.complete and (blob.user, blob.kind) == (model.owner, "MODEL")
        ]
        if not blobs or len(taken) != len(blobs):
            return _refusal("One or more of the files could not be found. Please upload them again.")
        number = len(instance.versions) + 1
        folder = self._folder / str(model.number) / instance.framework / instance.slug / str(number)
        notes = str(body.get("versionNotes") or "")
        version = Version(number, notes, call.now, call.now + self._settings.processing_s, folder)
        folder.mkdir(parents=True)
        for blob in taken:
            link(blob.path, folder / blob.name)
        lost = call.twist("lose_file")
        for file in version.files():
            if lost is not None and file.name in lost.files:
                file.path.unlink()
        instance.versions.append(version)
        call.effect = f"made version {number} of model {model.ref}/{instance.slug}: {', '.join(f.name for f in version.files())}"
        return None

    # What only looks.

    def get(self, call: Call) -> Answer:
        model = self._model(call, "models.get")
        return {
            "id": model.number,
            "ref": model.ref,
            "slug": model.slug,
            "title": model.slug,
            "author": model.owner,
            "isPrivate": model.private,
            "description": model.description,
            "instances": [_describe(each, call.now) for each in model.instances if each.created_at <= call.now],
        }

    def get_instance(self, call: Call) -> Answer:
        _, instance = self._instance(call, "models.get")
        return _describe(instance, call.now)

    def list_files(self, call: Call) -> Answer:
        _, instance = self._instance(call, "models.get")
        wanted, current = call.number("versionNumber"), instance.current(call.now)
        ready = [version for version in instance.versions if version.is_current_candidate(call.now)]
        version = next((each for each in ready if each.number == wanted), None) if wanted else current
        if version is None:
            raise denied("models.get")
        part, token = page(version.files(), call)
        created = iso(version.created_at)
        listed = [{"name": file.name, "size": file.size, "creationDate": created} for file in part]
        return {"files": listed, "nextPageToken": token}

    def _has(self, ref: str, now: float) -> bool:
        return any(model.ref == ref and model.created_at <= now for model in self._all)

    def _model(self, call: Call, permission: str) -> Model:
        ref = f"{call.text('ownerSlug')}/{call.text('modelSlug')}"
        found = next((model for model in self._all if model.ref == ref and model.created_at <= call.now), None)
        if found is None or found.owner != call.actor.user or call.actor.session is not None:
            raise denied(permission)
        return found

    def _instance(self, call: Call, permission: str) -> tuple[Model, Instance]:
        model = self._model(call, permission)
        wanted = (call.text("instanceSlug"), call.text("framework"))
        for each in model.instances:
            if (each.slug, each.framework) == wanted and each.created_at <= call.now:
                return model, each
        raise denied(permission)


def _describe(instance: Instance, now: float) -> dict[str, Any]:
    current = instance.current(now)
    return {
        "id": 1,
        "slug": instance.slug,
        "framework": instance.framework,
        **instance.texts,
        **({"versionNumber": current.number} if current is not None else {}),
    }


def _accepted(number: int, ref: str) -> Answer:
    return {"id": number, "ref": ref, "url": f"https://www.kaggle.com/models/{ref}", "error": "", "errorCode": 0}


def _refusal(error: str) -> Answer:
    return {"id": 0, "ref": "", "url": "", "error": error, "errorCode": 400}
