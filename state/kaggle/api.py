"""Kaggle as the rest of gemma-orch sees it: every call once, with time limits, answered by a value of ours or by an error."""

from __future__ import annotations

from state.kaggle.dataset_calls import DatasetCalls
from state.kaggle.kernel_calls import KernelCalls
from state.kaggle.model_calls import ModelCalls
from state.kaggle.records import (
    AcceleratorQuota,
    DatasetInfo,
    DatasetVersion,
    KernelInfo,
    KernelPush,
    OutputFile,
    SessionStatus,
)

__all__ = [
    "AcceleratorQuota",
    "DatasetInfo",
    "DatasetVersion",
    "KaggleApi",
    "KernelInfo",
    "KernelPush",
    "OutputFile",
    "SessionStatus",
]


class KaggleApi(KernelCalls, DatasetCalls, ModelCalls):
    """One account on Kaggle; threads may share it.

    Reads return None for what Kaggle says is not there (403 as well as 404: it does not tell them apart), and raise
    TemporaryError when that is unknown. Writes are sent once: they raise AmbiguousError when the answer was lost or is no
    proof, RateLimitedError, DeniedError, CredentialsError or UserError when they certainly had no effect.

    Args:
        credentials: The only ones that are sent, whatever else lies in the environment.
        connect_timeout_s: Longest wait for a connection.
        read_timeout_s: Longest wait for each piece of an answer.
        clock: For pauses between looks.
    """
