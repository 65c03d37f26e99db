from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worker.model.private_torch import GELU_BACKWARD, ONEDNN_PRODUCT, PrivateOperator, let_backward_recompute


def torch_with(default: Any) -> SimpleNamespace:
    """The operators of a torch whose GELU has this overload."""
    return SimpleNamespace(aten=SimpleNamespace(gelu_backward=SimpleNamespace(default=default)))


@pytest.mark.parametrize("operator", [ONEDNN_PRODUCT, GELU_BACKWARD], ids=lambda operator: operator.name)
def test_this_torch_has_what_is_called(operator: PrivateOperator) -> None:
    assert operator.is_known()


@pytest.mark.parametrize(
    "operators",
    [
        SimpleNamespace(),
        SimpleNamespace(aten=SimpleNamespace()),
        torch_with(None),
        torch_with(SimpleNamespace()),
        torch_with(SimpleNamespace(_schema="aten::gelu_backward(Tensor grad_output) -> Tensor")),
    ],
    ids=["no namespace", "no operator", "no overload", "no schema", "another schema"],
)
def test_an_operator_that_is_gone_or_changed_is_not_called(operators: SimpleNamespace) -> None:
    assert not GELU_BACKWARD.is_known(operators)


def test_what_takes_its_place_is_said() -> None:
    assert GELU_BACKWARD.missing() == (
        f"torch {torch.__version__} has no aten::gelu_backward that gemma-orch knows: "
        "autograd is used, which gives the same bits and needs more memory"
    )


def test_the_setting_of_the_compiler_is_there() -> None:
    said: list[str] = []
    let_backward_recompute(said.append)
    assert said == []


@pytest.mark.parametrize("module", ["torch.no_such_module", "torch.nn"])
def test_a_torch_without_the_setting_of_the_compiler_is_said(module: str) -> None:
    said: list[str] = []
    let_backward_recompute(said.append, module)
    assert f"has no {module}.ban_recompute_materialized_backward: compiled layers need more memory" in said[0]
