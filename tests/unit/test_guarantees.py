from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.repository import ROOT


def test_every_test_that_a_promise_names_exists() -> None:
    promised = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    everything = "\n".join(sources.values())
    names = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", promised)
    assert len(names) > 40
    for file, name in names:
        where = sources[ROOT / file] if file else everything
        assert f"def {name}(" in where, f"{file or 'tests'}::{name}"


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_every_document_that_the_first_pages_name_exists(page: str) -> None:
    links = re.findall(r"\]\((?!https:)(\w[^)#]*)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    assert "docs/guarantees.md" in links
    for link in links:
        assert (ROOT / link).is_file(), link


def test_ci_runs_on_every_python_that_the_package_says_it_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert f"python: {json.dumps(supported)}" in workflow
    assert project["requires-python"] == f">={supported[0]}"
