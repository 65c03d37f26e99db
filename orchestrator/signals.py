"""Sends signals to a process only if its identity is certain."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from state.process import ProcessIdentity, certainly_alive

TO_THE_GROUP = 4  # PIDFD_SIGNAL_PROCESS_GROUP; Linux 6.9 and newer


def signal_group(leader: ProcessIdentity, number: signal.Signals, group_flag: int = TO_THE_GROUP) -> bool:
    """Send a signal to the process group of a session leader; return whether it was sent.

    It is sent only if the process with the pid is certainly this one and leads its own session. Only Linux can prove that.

    Args:
        leader: The process that leads the session.
        number: The signal.
        group_flag: The flag that makes the kernel signal the whole group.
    """
    if sys.platform != "linux":
        return False
    with contextlib.ExitStack() as stack:
        descriptor = -1
        # Neither every kernel has process descriptors nor every build of Python the functions for them.
        with contextlib.suppress(OSError, AttributeError):
            # Opened before the check, so that the descriptor belongs to the process that is checked.
            descriptor = os.pidfd_open(leader.pid)
            stack.callback(os.close, descriptor)
        try:
            if not certainly_alive(leader) or os.getsid(leader.pid) != leader.pid:
                return False
            _send(descriptor, leader.pid, number, group_flag)
        except (ProcessLookupError, PermissionError):  # it has just ended, or belongs to another user
            return False
    return True


def _send(descriptor: int, group: int, number: signal.Signals, group_flag: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, number, None, group_flag)
    except ProcessLookupError:
        raise
    except (OSError, AttributeError):  # no descriptor, or this kernel lacks the flag: signal by the number, right after the check
        os.killpg(group, number)
