"""Published weights come to stand in a model too, on an account that an emulator plays: once, whole, private."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from orchestrator.backends.kaggle.publish.card import card_without_files
from orchestrator.backends.kaggle.publish.dataset import Published
from orchestrator.backends.kaggle.publish.model import PublishedForm, publish_model
from state.errors import DataError, TemporaryError, UserError
from state.kaggle.errors import CorruptUploadError, SlugTakenError
from state.kaggle.model_calls import ModelTexts
from state.kaggle.records import ModelForm
from state.ledger import Change, PutAttempt, PutCheckpoint, RunRecord, RunWishes
from state.session import RunState
from tests.factories import RUN, header, session_spec
from tests.integration.orchestrator.backends.kaggle.publish.test_dataset import Shop
from tests.kaggle_clients import connected
from tests.kaggle_emulator.faults import Fault
from tests.kaggle_emulator.models import Model
from tests.terminal import Terminal

_MODEL = "gemma-orch-tamil-model"
_HF = ModelForm(_MODEL, "MODEL_FRAMEWORK_TRANSFORMERS", "hf")
_PYTORCH = ModelForm(_MODEL, "MODEL_FRAMEWORK_PY_TORCH", "gemma-pytorch")
_WRITES = ("StartBlobUpload", "CreateModel", "CreateModelInstance", "CreateModelInstanceVersion")


class Showroom(Shop):
    """A shop whose weights go into a model as well."""

    def show(self, record: RunRecord, *, licence: str = "Other", keep: bool = True) -> list[PublishedForm]:
        return self.show_published(record, self.publish(record, keep=keep), licence)

    def show_published(self, record: RunRecord, published: Published, licence: str = "Other") -> list[PublishedForm]:
        return publish_model(self.api, self.ports, record, published, licence=licence)

    @property
    def model(self) -> Model:
        return self.sdk.emulator.models.all()[0]

    @property
    def num_versions(self) -> list[int]:
        return [len(instance.versions) for instance in self.model.instances]

    def writes(self) -> int:
        return sum(len(self.sdk.emulator.journal.of(route)) for route in _WRITES)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Showroom]:
    with connected(tmp_path) as sdk:
        made = Showroom(sdk, tmp_path)
        yield made
        made.runs.close()
        assert sdk.emulator.errors == []


def test_each_form_is_an_instance_of_a_private_model_with_the_card(shop: Showroom) -> None:
    record = shop.saved()
    assert shop.show(record) == [PublishedForm(_PYTORCH, 1, is_new=True), PublishedForm(_HF, 1, is_new=True)]
    found = shop.api.model_files(_HF, 1)
    assert found is not None
    marker = next(name for name in found if name.startswith("published-"))
    assert sorted(found) == sorted(["README.md", "config.json", "model.safetensors", "tokenizer.model", marker])
    assert sorted(shop.api.model_files(_PYTORCH, 1) or {}) == sorted(
        ["README.md", "config.json", "model.ckpt", "tokenizer.model", marker]
    )
    assert shop.model.private
    assert shop.model.description.startswith(f"# {RUN}")
    texts = shop.model.instances[1].texts
    assert texts == {"overview": "Weights of tamil for transformers", "usage": shop.model.description, "licenseName": "Other"}
    assert not (shop.ports.home.run(RUN).root / "publish" / "step-00000020-s001a1").exists()
    assert shop.sdk.emulator.leaks() == []


def test_the_same_again_sends_nothing(shop: Showroom) -> None:
    record = shop.saved()
    shop.show(record)
    writes = shop.writes()
    assert shop.show(record) == [PublishedForm(_PYTORCH, 1, is_new=False), PublishedForm(_HF, 1, is_new=False)]
    assert shop.writes() == writes


def test_weights_that_are_not_here_any_more_come_from_the_dataset(shop: Showroom) -> None:
    assert [each.version for each in shop.show(shop.saved(), keep=False)] == [1, 1]
    weights = next(file for file in shop.model.instances[1].versions[0].files() if file.name == "model.safetensors")
    dataset = shop.sdk.download("gemma-orch-tamil-weights", "hf.model.safetensors")
    assert weights.path.read_bytes() == dataset.content
    assert shop.exported == ["gemma-pytorch", "hf"]


def test_a_dataset_whose_bytes_are_others_is_not_passed_on(shop: Showroom) -> None:
    record = shop.saved()
    shop.sdk.emulator.faults.add(Fault("CreateDatasetVersion", "corrupt_file", files="hf.model.safetensors"))
    published = shop.publish(record, verify=False)
    with pytest.raises(DataError, match=r"hf.model.safetensors in version 2 of dataset gemma-orch-tamil-weights has sha256"):
        shop.show_published(record, published)


def test_a_later_checkpoint_becomes_a_version_of_the_same_instances(shop: Showroom) -> None:
    shop.show(shop.saved())
    assert shop.show(shop.saved(40)) == [PublishedForm(_PYTORCH, 2, is_new=True), PublishedForm(_HF, 2, is_new=True)]
    notes = shop.model.instances[0].versions[1].notes
    assert notes.startswith("gemma-orch weights of tamil step 40 published-")


@pytest.mark.parametrize("kind", ["drop_after", "drop_before"])
def test_whatever_happened_to_an_answer_there_is_one_of_each(shop: Showroom, kind: str) -> None:
    for route in _WRITES[1:]:
        shop.sdk.emulator.faults.add(Fault(route, kind, calls=[1]))
    assert [each.version for each in shop.show(shop.saved())] == [1, 1]
    assert [each.version for each in shop.show(shop.saved(40))] == [2, 2]
    assert len(shop.sdk.emulator.models.all()) == 1
    assert shop.num_versions == [2, 2]


def test_looks_that_are_older_than_the_model_do_no_harm(shop: Showroom) -> None:
    shop.show(shop.saved())
    shop.sdk.emulator.faults.add(Fault("GetModel", "lag", seconds=1e6, calls=[1]))
    shop.sdk.emulator.faults.add(Fault("GetModelInstance", "lag", seconds=1e6, calls=[1, 2]))
    assert [each.version for each in shop.show(shop.saved(40))] == [2, 2]
    assert len(shop.sdk.emulator.journal.of("CreateModelInstance")) == 3  # the last one was refused
    assert len(shop.sdk.emulator.journal.of("CreateModel")) == 2


def test_a_version_that_kaggle_only_said_it_made_is_made_by_the_same_command_later(shop: Showroom) -> None:
    record = shop.saved()
    shop.sdk.emulator.faults.add(Fault("CreateModelInstance", "lie", calls=[1]))
    with pytest.raises(TemporaryError, match=r"gemma-pytorch is not complete after 3600 s"):
        shop.show(record)
    assert [each.version for each in shop.show(record)] == [1, 1]


def test_a_command_that_ended_before_its_version_stood_waits_for_it_and_sends_nothing(shop: Showroom) -> None:
    record = shop.saved()
    shop.sdk.emulator.faults.add(Fault("ListModelInstanceVersionFiles", "status", status=500))
    with pytest.raises(TemporaryError):
        shop.show(record)
    sent = shop.writes()
    shop.sdk.emulator.faults.remove()
    assert [each.version for each in shop.show(record)] == [1, 1]
    assert len(shop.sdk.emulator.journal.of("CreateModelInstance")) == 2
    assert shop.writes() > sent  # the other form's
    assert shop.exported == ["gemma-pytorch", "hf"]


def test_a_version_that_lacks_a_file_is_told_and_made_up_for_by_the_same_command(shop: Showroom) -> None:
    record = shop.saved()
    shop.sdk.emulator.faults.add(Fault("CreateModelInstance", "lose_file", files="config.json", calls=[1]))
    with pytest.raises(
        CorruptUploadError, match=r"version 1 of model .*gemma-pytorch differs from the uploaded files: config.json"
    ):
        shop.show(record)
    assert [each.version for each in shop.show(record)] == [2, 1]


def test_a_licence_that_kaggle_does_not_take_is_told_and_another_one_may_be_named(shop: Showroom) -> None:
    record = shop.saved()
    with pytest.raises(UserError, match=r"is not one of those that models may have") as told:
        shop.show(record, licence="WTFPL")
    assert "--model-licence" in told.value.remedy
    assert [each.version for each in shop.show(record, licence="MIT")] == [1, 1]


def test_a_models_name_that_a_dataset_has_is_a_refusal_and_no_model_that_was_made_already(shop: Showroom) -> None:
    shop.sdk.create_dataset(_MODEL, {"a.bin": b"1"})
    with pytest.raises(SlugTakenError, match=f"making model {_MODEL} was refused: .*in use by a dataset"):
        shop.show(shop.saved())
    assert shop.sdk.emulator.models.all() == []


def test_an_instance_of_somebody_elses_is_never_written_to(shop: Showroom) -> None:
    shop.api.create_model(_MODEL, "mine")
    token, url = shop.api.start_upload("a.bin", 1, 1, blob_type="MODEL")
    with shop.api.transport.plain_session() as session:
        shop.api.transport.put(session, url, b"a", {})
    shop.api.create_model_instance(_HF, [token], ModelTexts("", "", "MIT"))
    shop.sdk.emulator.clock.advance(60)
    with pytest.raises(UserError, match=r"gemma-orch-tamil-model/hf already exists for something else"):
        shop.show(shop.saved())
    assert len(shop.model.instances[0].versions) == 1


@pytest.mark.parametrize(
    "look",
    [
        lambda shop: shop.api.has_model(_MODEL),
        lambda shop: shop.api.model_version(_HF),
        lambda shop: shop.api.model_files(_HF, 1),
    ],
)
def test_a_look_that_fails_is_not_taken_for_missing(shop: Showroom, look: Callable[[Showroom], object]) -> None:
    assert not look(shop)
    shop.sdk.emulator.faults.add(Fault("*", "status", status=502))
    with pytest.raises(TemporaryError):
        look(shop)
    shop.sdk.emulator.faults.remove()
    shop.sdk.emulator.faults.add(Fault("*", "lie", body={"slug": "another", "nextPageToken": "1"}))
    with pytest.raises(TemporaryError):
        look(shop)


def test_the_command_says_where_the_model_is(shop: Showroom) -> None:
    record = shop.saved()
    shop.show(record)
    known = header(state=RunState.FINISHED, head=record.header.head, data=record.header.data)
    changes: list[Change] = [
        *(PutAttempt(each, session_spec(each.session)) for each in record.attempts),
        *(PutCheckpoint(each) for each in record.checkpoints.values()),
    ]
    shop.runs.create(known, RunWishes(spec=record.spec), changes)
    account = shop.sdk.emulator.client_environment(shop.ports.home.root)
    with patch.dict(os.environ, account):
        said = Terminal(shop.ports.home.root).type("publish", "--model")
    assert said.exit_code == 0, said.output
    models = "https://www.kaggle.com/models/tester/gemma-orch-tamil-model"
    assert said.stdout.splitlines()[-2:] == [
        f"{models} has {form}, already published (version 1, names and sizes read back)" for form in ("gemma-pytorch", "hf")
    ]


def test_the_models_card_says_nothing_of_files_that_lie_together() -> None:
    assert card_without_files("# a\n\n## Files\n\nx\n\n## Licence\n\nyours\n") == "# a\n\n## Licence\n\nyours\n"
