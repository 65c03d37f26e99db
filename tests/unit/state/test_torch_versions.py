from __future__ import annotations

import re
import tomllib

import pytest

from state.torch_versions import NEWEST_TESTED_TORCH, TORCH_REQUIREMENT, is_known_torch, is_untested_torch, torch_minor
from tests.repository import ROOT


def test_the_versions_are_those_that_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert TORCH_REQUIREMENT in project["optional-dependencies"]["train"]


def test_the_newest_version_that_was_tested_is_the_one_that_the_tests_install() -> None:
    pinned = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert torch_minor(pinned[1]) == NEWEST_TESTED_TORCH


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0+cu128", "2.13.0+cpu", "2.15.1", "2.12.0a0+git1234"])
def test_a_version_within_the_range_is_known(version: str) -> None:
    assert is_known_torch(version)


@pytest.mark.parametrize("version", ["2.9.1+cu126", "1.13.0", "2.16.0.dev20261101", "3.0.0", "of an unknown version", ""])
def test_any_other_version_is_not(version: str) -> None:
    assert not is_known_torch(version)


def test_a_version_is_untested_when_it_is_newer_than_what_was_tested() -> None:
    assert [is_untested_torch(version) for version in ("2.10.0", "2.13.9", "2.14.0", "")] == [False, False, True, False]
