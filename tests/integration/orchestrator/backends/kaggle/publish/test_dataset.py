"""Weights come to stand on an account that an emulator plays, once, whole and with what is to be known of them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.publish.card import model_card
from orchestrator.backends.kaggle.publish.dataset import Publication, Published, Wanted, checked_slug, publish
from orchestrator.ports import Ports
from orchestrator.wiring import backend_kind
from state.architecture import ModelSpec, resolve_architecture
from state.errors import CorruptCheckpointError, DataError, TemporaryError, UserError
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.names import VersionNote, attempt_dataset_slug, checkpoint_file_names, data_slug
from state.layout import HomeLayout
from state.ledger import DataRecord, RunRecord
from state.manifest import Manifest
from state.process import identify
from state.stores.checkpoint_store import DirectoryCheckpointStore
from state.stores.run_store import SqliteRunStore
from tests.factories import DATA, RUN, after, attempt, checkpoint, commit_checkpoint, manifest, run_record
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator.emulator import KaggleEmulator
from tests.kaggle_emulator.faults import Fault

_SLUG = "gemma-orch-tamil-weights"
_TOKENIZER = b"a tokenizer"


class SharedClock:
    """Time that passes for the emulator when somebody here sleeps."""

    def __init__(self, emulator: KaggleEmulator) -> None:
        self._emulator = emulator
        self._elapsed_s = 0.0

    def now(self) -> datetime:
        return after(self._elapsed_s)

    def monotonic(self) -> float:
        return self._elapsed_s

    def sleep(self, seconds: float) -> None:
        self._elapsed_s += seconds
        self._emulator.clock.advance(seconds)


class Shop:
    """A home with a run whose weights are to be published, and the account."""

    def __init__(self, sdk: Sdk, root: Path) -> None:
        self.sdk = sdk
        clock = SharedClock(sdk.emulator)
        self.api = KaggleApi(Credentials("a test", user=USER, key=sdk.emulator.settings.key), clock=clock)
        layout = HomeLayout(root / "laptop")
        self.store = DirectoryCheckpointStore(layout.run(RUN).checkpoints)
        self.runs = SqliteRunStore(layout.ledger)
        self.ports = Ports(
            kind=backend_kind,
            runs=self.runs,
            home=layout,
            clock=clock,
            owner=identify(os.getpid()),
            backend=lambda _name, _run: pytest.fail("no backend is needed"),
            checkpoints=lambda _run: self.store,
            prepare=lambda *_arguments, **_options: pytest.fail("nothing is prepared"),
        )
        layout.run(RUN).data.mkdir(parents=True)
        (layout.run(RUN).data / "tokenizer.model").write_bytes(_TOKENIZER)
        self.exported: list[str] = []

    def record(self, *manifests: Manifest, data: DataRecord = DATA) -> RunRecord:
        """A run of one session that has saved these checkpoints."""
        known = [
            checkpoint(
                each.step,
                state_sha256=each.state_sha256,
                manifest_sha256=hashlib.sha256(each.to_json()).hexdigest(),
                total_bytes=each.total_bytes,
            )
            for each in manifests
        ]
        done = attempt(1, saved_step=manifests[-1].step, head=manifests[-1].id, ended_at=after(50))
        return run_record([done], known, head=manifests[-1].id, data=(data,))

    def saved(self, step: int = 20) -> RunRecord:
        """A run whose head lies in this home."""
        return self.record(commit_checkpoint(self.store, step))

    def export(self, source: Path, architecture: Path, tokenizer: Path, form: str, out: Path) -> None:
        """Stand in for the worker: real ones take a model's time."""
        assert (source / "manifest.json").exists()
        assert architecture.exists()
        self.exported.append(form)
        out.mkdir(parents=True)
        weights = b"".join(path.read_bytes() for path in sorted(source.glob("*.safetensors")))
        (out / ("model.ckpt" if form == "gemma-pytorch" else "model.safetensors")).write_bytes(weights)
        (out / "config.json").write_text(f'{{"form": "{form}"}}')
        shutil.copy(tokenizer, out / "tokenizer.model")
        (out / "gemma_orch_export.json").write_text("{}")

    def publish(self, record: RunRecord, **wanted: object) -> Published:
        assert record.header.head is not None
        return publish(
            self.api,
            self.ports,
            record,
            replace(Wanted(record.header.head), **wanted),  # type: ignore[arg-type]
            export=self.export,
        )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with connected(tmp_path) as sdk:
        made = Shop(sdk, tmp_path)
        yield made
        made.runs.close()


def test_both_forms_the_tokenizer_and_the_card_stand_in_one_private_dataset(shop: Shop) -> None:
    published = shop.publish(shop.saved())
    assert (published.slug, published.is_new, published.is_verified) == (_SLUG, True, True)
    listed = shop.api.dataset_files(_SLUG, published.version)
    assert listed is not None
    assert sorted(listed) == [
        "README.md",
        "gemma-pytorch.config.json",
        "gemma-pytorch.model.ckpt",
        "gemma-pytorch.tokenizer.model",
        "hf.config.json",
        "hf.model.safetensors",
        "hf.tokenizer.model",
        "published.json",
    ]
    dataset = shop.api.dataset(_SLUG)
    assert dataset is not None
    assert dataset.is_private
    said = Publication.from_json(shop.sdk.download(_SLUG, "published.json", published.version).content, "a test")
    assert (said.run, said.checkpoint, said.step) == (RUN, "step-00000020-s001a1", 20)
    assert said == published.publication
    assert said.files["hf.tokenizer.model"].sha256 == hashlib.sha256(_TOKENIZER).hexdigest()
    assert not (shop.ports.home.run(RUN).root / "publish" / "step-00000020-s001a1").exists()


def test_the_same_again_sends_nothing(shop: Shop) -> None:
    record = shop.saved()
    first = shop.publish(record)
    again = shop.publish(record, verify=False)
    assert again == replace(first, is_new=False, is_verified=False)
    assert shop.exported == ["gemma-pytorch", "hf"]
    assert len(shop.sdk.emulator.journal.of("CreateDatasetVersion")) == 1


def test_a_later_checkpoint_becomes_a_version_of_the_same_dataset(shop: Shop) -> None:
    first = shop.publish(shop.saved())
    second = shop.publish(shop.saved(40))
    assert (second.is_new, second.publication.step) == (True, 40)
    assert second.version == first.version + 1


def test_an_upload_that_broke_off_goes_on_without_another_export(shop: Shop) -> None:
    record = shop.saved()
    shop.sdk.emulator.faults.add(Fault("CreateDatasetVersion", "status", status=500))
    with pytest.raises(TemporaryError):
        shop.publish(record)
    shop.sdk.emulator.faults.remove()
    assert shop.publish(record).is_new
    assert shop.exported == ["gemma-pytorch", "hf"]


def test_a_version_whose_answer_was_lost_is_not_made_twice(shop: Shop) -> None:
    shop.sdk.emulator.faults.add(Fault("CreateDatasetVersion", "drop_after", calls=[1]))
    published = shop.publish(shop.saved())
    assert published.version == 2
    assert len(shop.sdk.emulator.datasets.all()[0].versions) == 2


def test_a_byte_that_changed_on_the_way_is_found_by_reading_back(shop: Shop) -> None:
    fault = Fault("CreateDatasetVersion", "corrupt_file", files=("hf.model.safetensors",))
    shop.sdk.emulator.faults.add(fault)
    with pytest.raises(DataError, match=r"hf.model.safetensors in version 2 of dataset gemma-orch-tamil-weights has sha256"):
        shop.publish(shop.saved())


def test_a_dataset_of_somebody_else_is_never_written_to(shop: Shop) -> None:
    shop.sdk.create_dataset("my-photos", {"cat.png": b"cat"})
    with pytest.raises(UserError, match=r"my-photos already exists for something else") as error:
        shop.publish(shop.saved(), slug="my-photos")
    assert "another --dataset-slug" in error.value.remedy
    other = Publication(run="another-run").to_json()
    shop.sdk.create_dataset("other-weights", {"published.json": other})
    with pytest.raises(UserError, match=r"weights of run another-run"):
        shop.publish(shop.saved(), slug="other-weights")
    assert shop.sdk.emulator.journal.of("CreateDatasetVersion") == []


def test_a_checkpoint_and_a_tokenizer_that_are_not_here_come_from_the_account(shop: Shop) -> None:
    made, _ = manifest(20)
    record = shop.record(made, data=DATA.evolve(tokenizer_sha256=hashlib.sha256(_TOKENIZER).hexdigest()))
    (shop.ports.home.run(RUN).data / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"step-00000020-s001a1 is missing: neither in this home nor in dataset"):
        shop.publish(record)
    flat = checkpoint_file_names(made.id, ("state.safetensors", "manifest.json"))
    note = VersionNote(session=1, attempt=1, fence=1, step=20, checkpoint=made.id, manifest_sha256=manifest(20)[1])
    slug = attempt_dataset_slug(RUN, 1, 1)
    shop.sdk.create_dataset(slug, {"session.json": b"{}"})
    shop.sdk.new_version(slug, {flat["state.safetensors"]: bytes(10), flat["manifest.json"]: made.to_json()}, str(note))
    with pytest.raises(UserError, match=r"tokenizer of run tamil is missing: neither at"):
        shop.publish(record)
    shop.sdk.create_dataset(data_slug(DATA.sha256, 0), {"data.json": b"{}", "tokenizer.model": _TOKENIZER})
    published = shop.publish(record)
    assert published.publication.files["hf.model.safetensors"].sha256 == hashlib.sha256(bytes(10)).hexdigest()


def test_a_tokenizer_of_another_text_is_refused(shop: Shop) -> None:
    (shop.ports.home.run(RUN).data / "tokenizer.model").write_bytes(b"another")
    shop.sdk.create_dataset(data_slug(DATA.sha256, 0), {"tokenizer.model": b"a third"})
    made = commit_checkpoint(shop.store, 20)
    right = DATA.evolve(tokenizer_sha256=hashlib.sha256(_TOKENIZER).hexdigest())
    with pytest.raises(DataError, match=r"the tokenizer that run tamil was trained with"):
        shop.publish(shop.record(made, data=right))


def test_a_checkpoint_that_is_not_what_it_was_is_not_published(shop: Shop) -> None:
    record = shop.saved()
    for path in shop.store.folder("step-00000020-s001a1").glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptCheckpointError):
        shop.publish(record)
    assert shop.api.dataset(_SLUG) is None


def test_no_credential_is_in_what_is_published(shop: Shop) -> None:
    shop.publish(shop.saved())
    assert shop.sdk.emulator.leaks() == []


@pytest.mark.parametrize("slug", ["Weights", "a", "x" * 51, "two--hyphens", "-edge"])
def test_a_slug_that_kaggle_would_change_is_refused(slug: str) -> None:
    with pytest.raises(UserError, match=r"--dataset-slug is invalid"):
        checked_slug(RUN, slug)


@pytest.mark.parametrize(
    "slug",
    [
        "gemma-orch-tamil-s001a1",
        "gemma-orch-other-s001a1-k",
        "gemma-orch-tamil-control",
        "gemma-orch-tamil-model",
        "gemma-orch-data-0123456789abcdef-p00",
        "gemma-orch-canary",
    ],
)
def test_a_slug_that_is_the_name_of_something_else_of_ours_is_refused(slug: str) -> None:
    with pytest.raises(UserError, match=r"gemma-orch reserves .+ for .+"):
        checked_slug(RUN, slug)


def test_a_slug_of_ones_own_or_of_weights_is_taken() -> None:
    for slug in ("gemma-orch-tamil-weights", "gemma-orch-other-weights", "my-weights", "gemma-orch-mine"):
        assert checked_slug(RUN, slug) == slug


def test_the_card_says_what_was_trained_on_what_and_for_how_long() -> None:
    made, _ = manifest(20)
    record = run_record(
        [attempt(1, saved_step=20, head=made.id, ended_at=after(7200))], [checkpoint(20)], head=made.id, data=(DATA,)
    )
    architecture = resolve_architecture(ModelSpec(), DATA.vocab_size)
    card = model_card(record, made, architecture, {"hf": ["hf.config.json"], "gemma-pytorch": ["gemma-pytorch.model.ckpt"]})
    for said in (
        f"A Gemma 3 of {architecture.num_parameters():,} parameters",
        "step 20 of 100",
        "| tokens | 10,240 |",
        "| loss at the next step | 1.0000 |",
        "| sessions | 1 |",
        "2h",
        f"`{made.state_sha256}`",
        "| en | 1,000 | 100.00% |",
        "| en | 10,240 |",
        f"`{DATA.sha256}`",
        "| hidden size | 128 |",
        "`hf.config.json`",
        "## Licence",
    ):
        assert said in card, said


def test_the_recipe_of_the_card_makes_the_folders_that_readers_expect(tmp_path: Path) -> None:
    made, _ = manifest(20)
    record = run_record([attempt(1)], [checkpoint(20)], head=made.id)
    card = model_card(record, made, resolve_architecture(ModelSpec(), 300), {"hf": ["hf.config.json"], "gemma-pytorch": []})
    recipe = card.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "weights").mkdir()
    for name in ("README.md", "hf.config.json", "hf.model.safetensors", "gemma-pytorch.model.ckpt"):
        (tmp_path / "weights" / name).write_text(name)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(compile(recipe, "README.md", "exec"), {})
    finally:
        os.chdir(before)
    made_files = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / RUN).rglob("*") if path.is_file())
    assert made_files == ["tamil/gemma-pytorch/model.ckpt", "tamil/hf/config.json", "tamil/hf/model.safetensors"]
