from __future__ import annotations

import re

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


def test_every_document_that_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((\w[^)#]*)\)", readme)
    assert "docs/performance.md" in links
    for link in links:
        assert (ROOT / link).is_file(), link
