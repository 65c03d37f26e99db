"""Which checkpoints may be pruned: the last k stay, every n-th stays, and at least two verified ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from state.spec import Retention

_FEWEST_VERIFIED = 2  # if one turns out corrupt, the run falls back to the other


@dataclass(frozen=True)
class PruneCandidate:
    """The facts about a checkpoint that pruning needs."""

    id: str
    step: int
    verified: bool


def checkpoints_to_prune(
    candidates: Sequence[PruneCandidate], retention: Retention, protected: Collection[str]
) -> tuple[str, ...]:
    """Return the ids that may be deleted, oldest first.

    Args:
        candidates: The checkpoints of one line, in any order.
        retention: How many to keep.
        protected: Ids that must stay in any case, such as the head and the checkpoints at which sessions started.
    """
    newest_first = sorted(candidates, key=lambda candidate: (candidate.step, candidate.id), reverse=True)
    keep = set(protected)
    keep.update(candidate.id for candidate in newest_first[: retention.keep_last])
    if retention.keep_every:
        keep.update(candidate.id for candidate in newest_first if candidate.step % retention.keep_every == 0)
    verified = [candidate.id for candidate in newest_first if candidate.verified]
    keep.update(verified[:_FEWEST_VERIFIED])
    return tuple(candidate.id for candidate in reversed(newest_first) if candidate.id not in keep)
