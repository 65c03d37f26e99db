from __future__ import annotations

from orchestrator.doctor import installed_version


def test_a_package_that_was_left_behind_has_an_unknown_version() -> None:
    assert installed_version("json") == "of an unknown version"  # a module of no distribution
    assert installed_version("no_such_module") is None
