from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.backends.kaggle.session.inputs import DataSources
from state.data_manifest import DataManifest
from state.errors import TemporaryError, UserError
from state.kaggle.names import data_slug
from state.layout import RunLayout
from tests.factories import RUN, session_data
from tests.kaggle_stage import Stage, kaggle_context
from tests.token_data import write_data


class Prepared:
    """A data folder here, and what of it is on the account."""

    def __init__(self, root: Path) -> None:
        self.stage = Stage(root)
        self.manifest: DataManifest = write_data(root / "data", {"en": list(range(200))})
        self.data = session_data(data_dir=str(root / "data"), data_sha256=self.manifest.data_sha256)
        self.sources = DataSources(kaggle_context(self.stage.account, RunLayout(root)))
        self.first, self.second = (data_slug(self.manifest.data_sha256, number) for number in (0, 1))

    def upload(self, *numbers: int) -> None:
        content = (self.stage.root / "data" / "data.json").read_bytes()
        if 0 in numbers:
            self.stage.account.add_version(self.first, "", {"data.json": content, "tokenizer.model": b"t"})
        if 1 in numbers:
            self.stage.account.add_version(self.second, "", dict.fromkeys(self.manifest.files, b""))


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path)


def test_the_datasets_of_the_data_are_found_by_its_digest_and_asked_for_once(prepared: Prepared) -> None:
    prepared.upload(0, 1)
    assert prepared.sources.unready(prepared.data) is None
    before = prepared.stage.account.count()
    assert prepared.sources.of(prepared.data) == (prepared.first, prepared.second)
    assert prepared.stage.account.count() == before


def test_data_whose_folder_is_on_another_machine_is_found_from_the_account_alone(prepared: Prepared) -> None:
    prepared.upload(0, 1)
    elsewhere = prepared.data.evolve(data_dir="/not/here")
    assert prepared.sources.of(elsewhere) == (prepared.first, prepared.second)


@pytest.mark.parametrize("there", [(), (0,), (1,)])
def test_data_that_is_not_on_the_account_is_the_users_to_upload(prepared: Prepared, there: tuple[int, ...]) -> None:
    prepared.upload(*there)
    with pytest.raises(UserError, match=f"gemma-orch upload --run {RUN}"):
        prepared.sources.unready(prepared.data)


def test_data_that_is_listed_and_is_not_shown_is_waited_for(prepared: Prepared) -> None:
    prepared.upload(0, 1)
    prepared.stage.account.hidden = {prepared.first}
    with pytest.raises(TemporaryError, match=r"lists the dataset .* and refuses to show it"):
        prepared.sources.unready(prepared.data)


def test_data_that_is_being_processed_is_waited_for(prepared: Prepared) -> None:
    prepared.upload(0, 1)
    prepared.stage.account.dataset_table[prepared.second][0].status = "Blobs_Received"
    assert prepared.sources.unready(prepared.data) == f"the dataset {prepared.second} to be processed by Kaggle"


def test_a_dataset_of_the_datas_name_that_holds_other_data_is_refused(prepared: Prepared) -> None:
    prepared.upload(1)
    prepared.stage.account.add_version(prepared.first, "", {"data.json": b"{}", "tokenizer.model": b"t"})
    with pytest.raises(UserError, match="is not on Kaggle"):
        prepared.sources.unready(prepared.data)
