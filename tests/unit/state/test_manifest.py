from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from state.manifest import DataPosition, FileEntry, Manifest, TensorEntry, first_difference, state_sha256
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import stage_checkpoint

POSITION = DataPosition(samples=80)


def tensor(name: str, content: str = "a", dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> TensorEntry:
    return TensorEntry(name=name, dtype=dtype, shape=shape, sha256=content * 64)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    made: Manifest = stage_checkpoint(DirectoryCheckpointStore(tmp_path), 10)[1]
    return made


@settings(derandomize=True, deadline=None)
@given(st.permutations(["a", "b", "c", "d"]))
def test_the_digest_of_a_state_does_not_depend_on_the_order_of_its_tensors(order: list[str]) -> None:
    tensors = [tensor(name) for name in order]
    assert state_sha256(tensors, 10, POSITION) == state_sha256(sorted(tensors, key=lambda one: one.name), 10, POSITION)


def test_the_digest_of_a_state_changes_with_everything_that_is_in_it() -> None:
    variants: list[tuple[list[TensorEntry], int, DataPosition]] = [
        ([tensor("a"), tensor("b")], 10, POSITION),
        ([tensor("a"), tensor("c")], 10, POSITION),
        ([tensor("a"), tensor("b", "b")], 10, POSITION),
        ([tensor("a"), tensor("b", dtype="I32")], 10, POSITION),
        ([tensor("a"), tensor("b", shape=(1, 2))], 10, POSITION),
        ([tensor("a")], 10, POSITION),
        ([tensor("a"), tensor("b")], 11, POSITION),
        ([tensor("a"), tensor("b")], 10, DataPosition(samples=81)),
        ([tensor("a"), tensor("b")], 10, DataPosition(samples=80, samples_by_language={"en": 80})),
    ]
    assert len({state_sha256(*variant) for variant in variants}) == len(variants)


def test_what_a_session_is_told_to_expect_comes_from_the_manifest(manifest: Manifest) -> None:
    expected = manifest.expected("m")
    assert (expected.id, expected.step, expected.manifest_sha256) == (manifest.id, 10, "m")
    assert expected.state_sha256 == manifest.state_sha256
    assert manifest.total_bytes == sum(entry.size_bytes for entry in manifest.files) > 0


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({}, None),
        ({"train_s": 9.0, "files": ()}, None),
        ({"step": 11}, "step: 10 and 11"),
        ({"tensors": ()}, "tensor model.a"),
        ({"data_position": DataPosition(samples=1)}, "data position"),
    ],
)
def test_the_first_thing_that_differs_is_named(manifest: Manifest, changes: dict[str, Any], difference: str | None) -> None:
    other = manifest.evolve(**changes)
    other = other.evolve(state_sha256=state_sha256(other.tensors, other.step, other.data_position))
    assert first_difference(manifest, other) == difference


def test_a_tensor_that_only_one_of_two_states_has_differs(manifest: Manifest) -> None:
    other = manifest.evolve(tensors=(*manifest.tensors, tensor("model.aa")), state_sha256="0" * 64)
    assert first_difference(manifest, other) == first_difference(other, manifest) == "tensor model.aa"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "/abs", "a\nb"])
def test_a_file_of_a_checkpoint_lies_in_its_folder_and_nowhere_else(name: str) -> None:
    with pytest.raises(ValidationError):
        FileEntry(name=name, size_bytes=1, sha256="0" * 64)


def test_a_manifest_survives_being_written_and_read(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json(), "here") == manifest
