"""The Kaggle API for the rest of gemma-orch: one method per call, with timeouts; it returns our own values or raises."""

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

    A read returns None if Kaggle says that the thing is missing (with 403 as well as 404: it does not tell them apart), and
    raises TemporaryError if that is unknown. A write is sent once. It raises AmbiguousError if the answer was lost or proves
    nothing, and RateLimitedError, DeniedError, CredentialsError or UserError if it certainly had no effect.

    Args:
        credentials: The only ones that are sent, even if the environment holds others.
        connect_timeout_s: Longest wait for a connection.
        read_timeout_s: Longest wait for each piece of an answer.
        clock: For the pauses between polls.
    """
