"""`python -m worker`: runs the session of a `session.json`, or a verb that needs the training extra."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from state.clock import SystemClock
from state.errors import GemmaOrchError, UserError
from worker.process import StopRequest, process_started_s, settle_threads

INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended, as shells expect it
LOCK_VARIABLE = "GEMMA_ORCH_LOCK_FD"
_DESCRIPTION = """\
python -m worker SESSION.JSON    run the session in the folder of SESSION.JSON; repeat it to continue
python -m worker prepare ...     encode a corpus into token shards
python -m worker tokenizer ...   train, evaluate or check a SentencePiece model
python -m worker data show ...   show the documents that a step reads
python -m worker export ...      write a checkpoint's weights for other programs
python -m worker prove ...       train steps in one piece and in several, and compare the states
python -m worker kaggle JOB.json repeat the session of a Kaggle kernel by hand

Exit codes: 0 done, 2 the user must change something, 3 temporary failure, 4 damaged or wrong data, 130 interrupted (Ctrl-C)."""


def main(arguments: list[str]) -> int:
    """Run a session or a verb; return the exit code."""
    verbs: dict[str, Callable[[list[str]], int]] = {
        "prepare": _prepare,
        "tokenizer": _tokenizer,
        "data": _data,
        "export": _export,
        "prove": _prove,
        "kaggle": _kaggle,
    }
    try:
        if overridden := settle_threads(os.environ, sys.modules):
            with contextlib.suppress(OSError):  # a session runs even if its log cannot be written, such as on a full disk
                sys.stderr.write(f"{overridden}\n")
        if arguments and arguments[0] in verbs:
            return verbs[arguments[0]](arguments[1:])
        return _run(arguments)
    except GemmaOrchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        from worker.failure import understand

        failure = understand(error)
        if not failure.expected:
            raise
        sys.stderr.write(f"{failure.reason}\n")
        return failure.exit_code


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m worker", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("session", type=Path, help="a SessionSpec as JSON, or a verb")
    session = parser.parse_args(arguments).session
    stop = StopRequest()
    stop.install()
    from worker.session.runner import Host, run_session

    lock = os.environ.get(LOCK_VARIABLE, "")
    host = Host(
        clock=SystemClock(),
        started_s=process_started_s(),
        lock_descriptor=int(lock) if lock.isdecimal() else None,
        asked_to_stop=stop,
    )
    return run_session(session, host)


def _prepare(arguments: list[str]) -> int:
    from worker.corpus.prepare_command import main as prepare

    return prepare(arguments)


def _tokenizer(arguments: list[str]) -> int:
    from worker.tokenizer_training.command import main as tokenizer

    return tokenizer(arguments)


def _data(arguments: list[str]) -> int:
    from worker.inspect_data.show import main as show

    if arguments[:1] != ["show"]:
        raise UserError(f"there is no verb data {' '.join(arguments[:1])}".rstrip(), remedy="python -m worker data show --help")
    return show(arguments[1:])


def _export(arguments: list[str]) -> int:
    from worker.engine import load_torch

    load_torch()
    from worker.export.command import main as export

    return export(arguments)


def _prove(arguments: list[str]) -> int:
    from worker.session.prove import main as prove

    return prove(arguments)


def _kaggle(arguments: list[str]) -> int:
    from worker.kaggle.command import run_command

    return run_command(arguments, os.environ)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe or a full disk: the exit code still gives the result
            stream.flush()
    # Not sys.exit: all results are on the disk, and torch needs a while to shut down.
    os._exit(code)
