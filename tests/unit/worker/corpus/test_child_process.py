import multiprocessing
import os
import signal

from worker.corpus.child_process import belong_to_the_parent, deaf_to_interrupts


def test_ctrl_c_does_not_reach_a_child_that_is_only_beginning() -> None:
    child = multiprocessing.get_context("spawn").Process(target=belong_to_the_parent)
    with deaf_to_interrupts():
        child.start()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGINT)
    child.join()
    assert child.exitcode == 0


def test_ctrl_c_reaches_the_parent_again_afterwards() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with deaf_to_interrupts():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
