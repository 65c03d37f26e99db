from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.controller.prune import prunable
from state.ledger import CheckpointRecord, CheckpointState, RerunWish
from state.lineage import ancestors
from state.spec import Retention
from tests.factories import START, attempt, checkpoint, run_record, run_spec


def line(*steps: int, **values: Any) -> list[CheckpointRecord]:
    """Checkpoints of one line, oldest first."""
    records: list[CheckpointRecord] = []
    for step in steps:
        records.append(checkpoint(step, parent=records[-1].id if records else None, **values))
    return records


def retention(**values: int) -> Retention:
    return Retention.model_validate({"keep_last": 2, "keep_session_starts": 0, **values})


def test_the_newest_of_the_runs_line_stay() -> None:
    known = line(10, 20, 30, 40)
    record = run_record(checkpoints=known, head=known[-1].id, spec=run_spec(retention=retention()))
    assert prunable(record) == (known[0].id, known[1].id)


def test_the_head_stays_even_when_it_is_not_the_newest() -> None:
    known = line(10, 20, 30, 40)
    record = run_record(checkpoints=known, head=known[0].id, spec=run_spec(retention=retention()))
    assert prunable(record) == ()


def test_where_the_last_sessions_started_stays_however_often_one_was_tried() -> None:
    known = line(10, 20, 30, 40, 50)
    attempts = [
        attempt(2, fence=1, start_checkpoint=known[0].id),
        attempt(3, fence=2, start_checkpoint=known[1].id),
        *(attempt(4, number, fence=2 + number, start_checkpoint=known[2].id) for number in (1, 2, 3)),
    ]
    record = run_record(attempts, known, head=known[-1].id, spec=run_spec(retention=retention(keep_session_starts=2)))
    assert prunable(record) == (known[0].id,)


def test_where_a_session_started_that_shall_run_again_stays() -> None:
    known = line(10, 20, 30, 40)
    attempts = [attempt(1), attempt(2, start_checkpoint=known[0].id)]
    wishes = {"rerun": RerunWish(session=2, adopt=False, requested_at=START)}
    record = run_record(attempts, known, head=known[-1].id, wishes=wishes, spec=run_spec(retention=retention()))
    assert prunable(record) == (known[1].id,)


def test_every_nth_stays() -> None:
    known = line(10, 20, 30, 40, 50)
    record = run_record(checkpoints=known, head=known[-1].id, spec=run_spec(retention=retention(keep_every=20)))
    assert prunable(record) == (known[0].id, known[2].id)


def test_branches_and_late_commits_stay() -> None:
    known = line(10, 20, 30)
    late = checkpoint(5, 9)
    branch = checkpoint(15, 1, 2, branch="rerun-s001a2")
    record = run_record(checkpoints=[*known, late, branch], head=known[-1].id, spec=run_spec(retention=retention()))
    assert prunable(record) == (known[0].id,)


def test_the_line_that_an_adoption_left_behind_does_not_crowd_out_the_new_one() -> None:
    old = line(10, 20, 30, 40, 50)
    new = [checkpoint(25, 1, 2, parent=old[1].id, branch="rerun-s001a2")]
    new += [checkpoint(28, 6, parent=new[0].id)]
    record = run_record(checkpoints=[*old, *new], head=new[-1].id, spec=run_spec(retention=retention()))
    assert prunable(record) == (old[0].id, old[1].id)


def test_what_is_gone_or_corrupt_is_no_candidate() -> None:
    known = line(10, 20, 30, 40)
    known[0] = known[0].evolve(state=CheckpointState.PRUNED)
    known[2] = known[2].evolve(state=CheckpointState.QUARANTINED)
    record = run_record(checkpoints=known, head=known[-1].id, spec=run_spec(retention=retention()))
    assert prunable(record) == ()


@settings(derandomize=True, deadline=None)
@given(
    parents=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    states=st.lists(st.sampled_from(list(CheckpointState)), min_size=30, max_size=30),
    starts=st.lists(st.integers(0, 29), max_size=6),
    rules=st.tuples(st.integers(2, 5), st.integers(0, 4), st.integers(0, 4)),
    head=st.integers(0, 29),
)
def test_pruning_never_touches_the_head_the_last_starts_or_the_last_two_verified(
    parents: list[int], states: list[CheckpointState], starts: list[int], rules: tuple[int, int, int], head: int
) -> None:
    known: list[CheckpointRecord] = []
    for number, parent in enumerate(parents):
        origin = known[parent] if parent < len(known) else None
        step = (origin.step if origin else 0) + 1 + number % 3
        known.append(checkpoint(step, number + 1, parent=origin.id if origin else None, state=states[number]))
    head_record = known[head % len(known)].evolve(state=CheckpointState.VERIFIED)
    known[head % len(known)] = head_record
    keep_last, keep_every, keep_starts = rules
    started = [known[start % len(known)].id for start in starts]
    record = run_record(
        [attempt(number, start_checkpoint=start) for number, start in enumerate(started, start=1)],
        known,
        head=head_record.id,
        spec=run_spec(retention=retention(keep_last=keep_last, keep_every=keep_every, keep_session_starts=keep_starts)),
    )
    gone = set(prunable(record))
    assert head_record.id not in gone
    assert not gone & set(list(dict.fromkeys(reversed(started)))[:keep_starts])
    on_line = list(ancestors(head_record.id, record.parents))
    verified = [name for name in on_line if record.checkpoints[name].state is CheckpointState.VERIFIED]
    assert gone <= set(verified)
    assert len(set(verified) - gone) >= min(2, len(verified))
    assert not gone & set(verified[:keep_last])
