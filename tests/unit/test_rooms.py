"""The rooms of the code: small, listed in docs/architecture.md, and mirrored by the tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repository import ROOT

_PACKAGES = ("state", "worker", "orchestrator")
_MODULES = sorted(path.relative_to(ROOT) for package in _PACKAGES for path in (ROOT / package).rglob("*.py"))
_ROOMS = sorted({module.parent for module in _MODULES})
_MOST_MODULES = 14
_MOST_IN_A_FLAT_ROOM = 25
_FLAT = {Path("state"), Path("state/kaggle"), Path("worker/corpus")}
_PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("architecture.md", "contributing.md")}
_TREE = _PAGES["architecture.md"].partition("```text\n")[2].partition("```")[0]


@pytest.mark.parametrize("room", _ROOMS, ids=str)
def test_a_room_is_not_empty_and_not_too_large(room: Path) -> None:
    modules = [module for module in _MODULES if module.parent == room and module.name != "__init__.py"]
    assert 0 < len(modules) <= (_MOST_IN_A_FLAT_ROOM if room in _FLAT else _MOST_MODULES)


def test_the_tree_has_one_line_for_each_room_and_no_other_line() -> None:
    assert sorted(line.split()[0] for line in _TREE.splitlines()) == sorted(f"{room}/" for room in _ROOMS)


@pytest.mark.parametrize("page", _PAGES)
def test_every_path_on_the_page_is_whole_and_exists(page: str) -> None:
    paths = re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|md|toml)|(?:[\w.]+/)+)`", _PAGES[page])
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_unit_test_is_named_after_a_module_and_lies_in_its_room() -> None:
    modules = [module.with_name(module.stem.strip("_")).as_posix() for module in _MODULES]
    folder = ROOT / "tests" / "unit"
    tests = [path.relative_to(folder) for path in folder.rglob("test_*.py")]
    tested = [path.with_name(path.stem.removeprefix("test_")).as_posix() for path in tests if path.parts[0] in _PACKAGES]
    assert len(tested) > 100
    assert [name for name in tested if not any(f"{name}_".startswith(f"{module}_") for module in modules)] == []
    assert {path.parts[0] for path in tests if len(path.parts) > 1} == set(_PACKAGES)
