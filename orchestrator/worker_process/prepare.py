"""Prepare a run's data with `python -m worker prepare`, or check a folder that is already prepared."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from orchestrator.worker_process.command import require_training_extra, worker_command
from state.data_manifest import DataManifest
from state.errors import DataError, ExitCode, GemmaOrchError, TemporaryError, UserError
from state.layout import DATA_MANIFEST_NAME, HomeLayout, data_folder_name
from state.ledger import DataRecord
from state.mixture import budget_exceeds_caps, mixture_weights, unimax_weights
from state.spec import RunSpec

_LEASE_EVERY_S = 5.0
_MOMENT_S = 0.5  # a line is held back this long: if the child fails within it, the line is the error message
_LAST_LINES = 12


class WorkerPreparer:
    """Prepares a run's token shards with `python -m worker prepare`, or uses a folder that is already prepared."""

    def __init__(self, home: HomeLayout, say: Callable[[str], None], worker: Sequence[str] | None = None) -> None:
        """Create a preparer for the runs of a home.

        Args:
            home: The home; data goes into its runs' folders.
            say: Receives progress lines, and at the end what was read and left out.
            worker: A command to use instead of `python -m worker prepare`.
        """
        self._home = home
        self._say = say
        self._worker = list(worker) if worker is not None else worker_command("prepare", ())

    def has_data(self, run: str, data: DataRecord) -> bool:
        """Return whether a data version is complete: its manifest matches, and every file has its size."""
        folder = self._home.run(run).data_folder(data.folder)
        try:
            manifest = _manifest(folder)
        except (OSError, DataError):
            return False
        return _wrong_file(folder, manifest) is None and manifest.data_sha256 == data.sha256

    def __call__(self, spec: RunSpec, keep_lease: Callable[[], None], *, version: int = 1, first_step: int = 0) -> DataRecord:
        """Prepare a data version of a run, or check that its folder is prepared.

        Raises:
            GemmaOrchError: the corpus, the tokenizer or the folder is not usable; the message is the worker's.
        """
        if spec.data.prepared is not None:
            folder, name = Path(spec.data.prepared), spec.data.prepared
            manifest = made_already(folder)
        else:
            require_training_extra()
            name = data_folder_name(version)
            folder = self._home.run(spec.name).data_folder(name)
            self._prepare(spec, folder, keep_lease)
            manifest = _manifest(folder)
        tokens = manifest.tokens_by_language
        mixture = self._mixture(spec, tokens, first_step)
        _check_lengths(tokens, mixture, spec.data.sequence_length)
        self._say("share of the sequences: " + ", ".join(f"{name} {share:.2%}" for name, share in mixture.items()))
        return DataRecord(
            first_step=first_step,
            folder=name,
            corpus=spec.data.corpus,
            sha256=manifest.data_sha256,
            tokenizer_sha256=manifest.tokenizer_sha256,
            vocab_size=manifest.vocab_size,
            tokens=tokens,
            mixture=mixture,
        )

    def _prepare(self, spec: RunSpec, folder: Path, keep_lease: Callable[[], None]) -> None:
        arguments = [argument for corpus in spec.data.corpus for argument in ("--corpus", corpus)]
        if spec.data.tokenizer is not None:
            arguments += ["--tokenizer", spec.data.tokenizer]
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [*self._worker, *arguments, "--out", str(folder), "--replace"]
        exit_code, last_words = _run_and_relay(command, self._say, keep_lease)
        if exit_code:
            raise _as_error(exit_code, last_words)
        if last_words:
            self._say(last_words)

    def _mixture(self, spec: RunSpec, tokens: Mapping[str, int], first_step: int) -> dict[str, float]:
        """Return each language's share by the spec's rule; UniMax's budget is the tokens of the steps that read this version."""
        data = spec.data
        if data.mixing != "unimax":
            return mixture_weights(tokens, data.alpha, data.weights)
        budget_tokens = max(1, spec.total_steps - first_step) * spec.training.batch_size * data.sequence_length
        if budget_exceeds_caps(tokens, budget_tokens=budget_tokens, max_epochs=data.max_epochs):
            self._say(
                f"max_epochs is exceeded: {budget_tokens:,} tokens to train on are more than {data.max_epochs:g} epochs of all "
                "text; every language is read more often, in proportion to its tokens"
            )
        return unimax_weights(tokens, budget_tokens=budget_tokens, max_epochs=data.max_epochs)


def _run_and_relay(command: Sequence[str], say: Callable[[str], None], keep_lease: Callable[[], None]) -> tuple[int, str]:
    """Run a child and relay its stderr line by line.

    The lines of the last `_MOMENT_S` are held back: if the child fails, they are its error message. If there are none then, the
    last lines of all are the message.

    Returns:
        The exit code and the message; after a success, only the lines that were not relayed.
    """
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(child.stderr, lines), daemon=True)
    reader.start()
    fresh: list[str] = []
    recent: deque[str] = deque(maxlen=_LAST_LINES)
    lease_s = time.monotonic()
    try:
        while True:
            if time.monotonic() - lease_s >= _LEASE_EVERY_S:
                keep_lease()
                lease_s = time.monotonic()
            try:
                line = lines.get(timeout=_MOMENT_S)
            except queue.Empty:
                if child.poll() is not None:
                    break  # the child has ended, but a process that it started may still hold the stream open
                for held in fresh:
                    say(held)
                fresh.clear()
                continue
            if line is None:
                break
            fresh.append(line)
            recent.append(line)
        exit_code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        reader.join(_MOMENT_S)
    return exit_code, "\n".join(fresh or (recent if exit_code else []))


def _read_lines(stream: IO[str] | None, lines: queue.SimpleQueue[str | None]) -> None:
    """Put a stream's lines into a queue, and None at its end."""
    if stream is not None:
        with stream:
            for line in stream:
                lines.put(line.rstrip("\n"))
    lines.put(None)


def made_already(folder: Path) -> DataManifest:
    """Return the manifest of a prepared data folder.

    Raises:
        UserError: the folder has no readable manifest.
        DataError: a file is missing or differs from the manifest in size.
    """
    try:
        manifest = _manifest(folder)
    except OSError as error:
        raise UserError(
            f"data folder is invalid: {folder}: {DATA_MANIFEST_NAME} cannot be read ({error.strerror})",
            expected="a folder that gemma-orch prepare has finished",
            remedy=f"gemma-orch prepare --corpus DIR --out {folder}; if the folder was moved, name its new place",
        ) from error
    if (wrong := _wrong_file(folder, manifest)) is not None:
        raise DataError(
            f"data file is missing or has the wrong size: {folder / wrong}",
            expected=f"{manifest.files[wrong]:,} bytes",
            remedy="copy the data folder again, or prepare it again",
        )
    return manifest


def _wrong_file(folder: Path, manifest: DataManifest) -> str | None:
    """Return the name of the first file that is missing or has the wrong size; None if all match."""
    for name, size_bytes in manifest.files.items():
        try:
            if (folder / name).stat().st_size != size_bytes:
                return name
        except OSError:
            return name
    return None


def _manifest(folder: Path) -> DataManifest:
    return DataManifest.from_json((folder / DATA_MANIFEST_NAME).read_bytes(), "the data's manifest")


def _check_lengths(tokens: Mapping[str, int], mixture: Mapping[str, float], sequence_length: int) -> None:
    short = [
        f"{language} ({tokens[language]:,} tokens)"
        for language, weight in mixture.items()
        if weight > 0.0 and tokens[language] <= sequence_length
    ]
    if short:
        raise UserError(
            f"too few tokens for one sequence of {sequence_length}: {', '.join(short)}",
            expected=f"at least {sequence_length + 1} tokens in every language with a share",
            remedy="lower sequence_length under [data] in the config file, add text, or give these languages the weight 0",
        )


def _as_error(exit_code: int, said: str) -> GemmaOrchError:
    message = said.strip() or f"preparing the data failed with exit code {exit_code}"
    match exit_code:
        case ExitCode.USER:
            return UserError(message)
        case ExitCode.DATA:
            return DataError(message)
        case _:
            return TemporaryError(message, remedy="the same command again resumes")
