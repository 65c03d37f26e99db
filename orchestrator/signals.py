"""Signals for processes that are known for sure, and for no others."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from state.process import ProcessIdentity, certainly_alive

TO_THE_GROUP = 4  # PIDFD_SIGNAL_PROCESS_GROUP, which Linux knows from 6.9 on


def signal_group(leader: ProcessIdentity, number: signal.Signals, group_flag: int = TO_THE_GROUP) -> bool:
    """Send a signal to a process that leads a session of its own and to what it has started; return whether it was sent.

    That takes proof that the process which has the pid now is this very one, and that the group was made for it; on Linux alone
    there is any.

    Args:
        leader: Who leads the session.
        number: The signal.
        group_flag: What tells the kernel that the whole group is meant.
    """
    if sys.platform != "linux":
        return False
    with contextlib.ExitStack() as stack:
        descriptor = -1
        with contextlib.suppress(OSError):  # it is gone, or this kernel has no descriptors of processes
            # Taken before the look: the process that the look finds is the one that the descriptor belongs to.
            descriptor = os.pidfd_open(leader.pid)
            stack.callback(os.close, descriptor)
        try:
            if not certainly_alive(leader) or os.getsid(leader.pid) != leader.pid:
                return False
            _send(descriptor, leader.pid, number, group_flag)
        except (ProcessLookupError, PermissionError):  # it has ended in this moment, or belongs to another user
            return False
    return True


def _send(descriptor: int, group: int, number: signal.Signals, group_flag: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, number, None, group_flag)
    except ProcessLookupError:
        raise
    except OSError:  # the kernel does not know the flag: by its number, a moment after the look
        os.killpg(group, number)
