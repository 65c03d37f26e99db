"""Which checkpoints lie in the outputs of kernels only, and bringing them into datasets, where they outlive their kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.backends.kaggle.checkpoints.promote import Promotion
from orchestrator.backends.kaggle.checkpoints.store import KaggleCheckpoints
from state.errors import DataError, GemmaOrchError, TemporaryError, UserError
from state.kaggle.job import CheckpointPlace
from state.layout import attempt_name
from state.ledger import CheckpointRecord, CheckpointState, RunRecord

if TYPE_CHECKING:
    from orchestrator.backends.kaggle.data.upload import Talk
    from orchestrator.ports import Ports
    from state.kaggle.api import KaggleApi


@dataclass(frozen=True)
class Promoted:
    """A checkpoint that stands in a dataset."""

    id: str
    place: CheckpointPlace
    stood_already: bool


def checkpoints_of(ports: Ports, record: RunRecord) -> KaggleCheckpoints:
    """Return the checkpoint store of a run that trains on Kaggle, or has.

    Raises:
        UserError: it never has.
    """
    store = ports.checkpoints(record.name)
    if not isinstance(store, KaggleCheckpoints):
        raise UserError(
            f"run {record.name} has never trained on Kaggle: its checkpoints are all in this home",
            remedy=f"gemma-orch start --name {record.name} --backend kaggle brings there what its sessions need",
        )
    return store


def to_promote(record: RunRecord, store: KaggleCheckpoints, checkpoint_id: str | None = None) -> tuple[CheckpointRecord, ...]:
    """Return the one that is named, else all kept ones that lie in an output only: the head first, then the newest.

    Raises:
        TemporaryError: the named one is of an attempt that runs, and itself writes into its dataset.
    """
    live = record.live_attempt
    at_work = (live.session, live.attempt) if live is not None else None
    if checkpoint_id is not None:
        named = record.checkpoints[checkpoint_id]
        if at_work == (named.session, named.attempt):
            raise TemporaryError(
                f"{named.id} is of {attempt_name(*at_work)}, which is at work and writes into its dataset itself",
                remedy=f"the same command when it has ended; gemma-orch stop {record.name} ends it",
            )
        return (named,)
    in_outputs = (
        each
        for each in record.checkpoints.values()
        if each.state is CheckpointState.VERIFIED and (each.session, each.attempt) != at_work and _is_in_output(store, each.id)
    )
    return tuple(sorted(in_outputs, key=lambda each: (each.id == record.header.head, each.step, each.fence), reverse=True))


def promote_all(
    api: Callable[[], KaggleApi],
    ports: Ports,
    record: RunRecord,
    store: KaggleCheckpoints,
    wanted: Sequence[CheckpointRecord],
    talk: Talk,
) -> Iterator[Promoted]:
    """Bring checkpoints into their datasets, one after the other; one that cannot be brought does not keep the next ones.

    Raises:
        UserError: Kaggle refuses one; the next ones are not tried.
        TemporaryError, DataError: of the first one that could not be brought, after the others were.
    """
    layout = ports.home.run(record.name)
    promotion = Promotion(api, record.name, layout, ports.clock, record.spec.kaggle, store)
    failures: list[GemmaOrchError] = []
    for checkpoint in wanted:
        before = store.place(checkpoint.id)
        try:
            place = promotion.bring(checkpoint, talk)
        except (TemporaryError, DataError) as error:
            if failures or len(wanted) > 1:
                talk.say(f"{checkpoint.id} is not brought: {error.what}")
            failures.append(error)
            continue
        yield Promoted(checkpoint.id, place, stood_already=before == place)
    if failures:
        raise failures[0]


def advice(ports: Ports, record: RunRecord) -> str:
    """Return how to make a head safe that lies in the output of a kernel only; empty when it does not. Asks Kaggle nothing."""
    head, store = record.header.head, ports.checkpoints(record.name)
    if head is None or not isinstance(store, KaggleCheckpoints) or not _is_in_output(store, head):
        return ""
    return (
        f"{head} lies in the output of its kernel only, and would be gone with it: "
        f"gemma-orch promote --run {record.name} brings it into a dataset"
    )


def _is_in_output(store: KaggleCheckpoints, checkpoint_id: str) -> bool:
    place = store.place(checkpoint_id)
    return place is not None and place.kind == "output"
