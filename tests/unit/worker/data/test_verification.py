from __future__ import annotations

import threading

import pytest

from state.errors import DataError, TemporaryError
from worker.data.verification import Verification

LIMIT_S = 60.0


class Block:
    """A block that is verified when it is let, with what that finds."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.may_go = threading.Event()
        self.is_done = False

    def __call__(self) -> None:
        assert self.may_go.wait(LIMIT_S)
        if self.error:
            raise self.error
        self.is_done = True


def added(verification: Verification, *errors: Exception | None) -> list[Block]:
    blocks = [Block(error) for error in errors]
    for block in blocks:
        verification.add(block)
    return blocks


def let_go(blocks: list[Block]) -> None:
    for block in blocks:
        block.may_go.set()


def test_a_look_does_not_wait_and_settling_does():
    verification = Verification()
    blocks = added(verification, None, None)
    verification.check()
    assert not any(block.is_done for block in blocks)
    settling = threading.Thread(target=verification.settle)
    settling.start()
    let_go(blocks[:1])
    settling.join(0.02)
    assert settling.is_alive()
    let_go(blocks)
    settling.join(LIMIT_S)
    assert all(block.is_done for block in blocks)


def test_what_was_found_is_said_at_every_later_look():
    verification = Verification()
    let_go(added(verification, None, DataError("block 7 has changed"), None))
    with pytest.raises(DataError, match="block 7"):
        verification.settle()
    let_go(added(verification, None))
    for look in (verification.check, verification.settle):
        with pytest.raises(DataError, match="block 7"):
            look()
    verification.close()


def test_a_large_backlog_is_waited_for():
    verification = Verification()
    blocks = added(verification, *[None] * 66)
    looking = threading.Thread(target=verification.check)
    looking.start()
    let_go(blocks[:1])
    looking.join(0.02)
    assert looking.is_alive()
    let_go(blocks[:2])
    looking.join(LIMIT_S)
    assert not looking.is_alive()
    assert not blocks[2].is_done
    let_go(blocks)
    verification.close()
    assert all(block.is_done for block in blocks)


def test_the_thread_ends_with_its_work_and_comes_again():
    before = set(threading.enumerate())
    verification = Verification()
    verification.close()
    for _ in range(50):
        blocks = added(verification, None, None)
        let_go(blocks)
        verification.settle()
        assert all(block.is_done for block in blocks)
    verification.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_not_waited_for():
    verification = Verification()
    let_go(added(verification, ZeroDivisionError()))
    with pytest.raises(TemporaryError, match="has died"):
        verification.settle()
    verification.close()
