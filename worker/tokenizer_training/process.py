"""Runs SentencePiece's trainer in a child process.

The trainer is C++ code that cannot be interrupted, writes to standard error, and kills its process when it fails. In a
child process, Ctrl-C ends it at once, and a failure becomes an error with a message.
"""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import sentencepiece

from state.errors import TemporaryError
from worker.process import belong_to_the_parent, deaf_to_interrupts

_BATCH_BYTES = 1024**2
_SAY_EVERY_S = 30.0


class RefusedError(Exception):
    """SentencePiece refuses to train with these options on this text; carries its message."""


def train_in_process(
    texts: Iterable[str] | Iterable[bytes], vocab_size: int, *, character_coverage: float, num_threads: int = 1
) -> bytes:
    """Return a model: BPE with byte fallback and Gemma's special ids, a pure function of the texts and the options.

    It has fewer pieces than `vocab_size` if the text has no more. Source of the ids (pad 0, eos 1, bos 2, unk 3): the
    Gemma 3 tokenizer.

    Args:
        texts: Texts; bytes must be UTF-8. At most a megabyte each: the trainer skips longer ones without a warning.
        vocab_size: Number of pieces to learn.
        character_coverage: Share of the characters that get their own pieces; the rest is written as bytes.
        num_threads: Threads of the trainer; the pieces do not depend on it.

    Raises:
        RefusedError: the options do not fit the text.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=character_coverage,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1_000_000,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            num_threads=num_threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RefusedError(str(error)) from error
    return model.getvalue()


def train_in_child(
    texts: Iterable[bytes], vocab_size: int, *, character_coverage: float, waiting: Callable[[], None] = lambda: None
) -> bytes:
    """Run `train_in_process` in a child process, which never outlives this call.

    Args:
        texts: As for `train_in_process`; none is kept after it has been sent.
        vocab_size: As for `train_in_process`.
        character_coverage: As for `train_in_process`.
        waiting: Called every half minute while the child trains.

    Raises:
        RefusedError: the options do not fit the text.
        TemporaryError: the process was killed.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the sample and the progress bar's thread
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, vocab_size, character_coverage), daemon=True)
    with deaf_to_interrupts():
        process.start()
    theirs.close()
    try:
        for batch in _batches(texts):
            ours.send(batch)
        ours.send(None)
        while not ours.poll(_SAY_EVERY_S):
            waiting()
        answer: bytes | str = ours.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise _died(process) from error
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, str):
        raise RefusedError(answer)
    return answer


def _died(process: BaseProcess) -> TemporaryError:
    process.join()
    return TemporaryError(
        f"the process that trains the tokenizer ended by itself (exit code {process.exitcode})",
        remedy="if the memory ran out (exit code -9), repeat the command with a smaller --sample-bytes",
    )


def _batches(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    num_bytes = 0
    for text in texts:
        batch.append(text)
        num_bytes += len(text)
        if num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    yield batch


def _child(connection: Connection, vocab_size: int, character_coverage: float) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # SentencePiece writes its errors there and raises them, too
    belong_to_the_parent()
    try:
        connection.send(train_in_process(_received(connection), vocab_size, character_coverage=character_coverage))
    except RefusedError as error:
        connection.send(str(error))


def _received(connection: Connection) -> Iterator[bytes]:
    while (batch := connection.recv()) is not None:
        yield from batch
