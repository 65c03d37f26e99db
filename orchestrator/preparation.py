"""Verbs that need the training extra run as children of the controller: `python -m worker VERB`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from state.data_manifest import DataManifest, mixture_weights
from state.errors import DataError, ExitCode, GemmaOrchError, TemporaryError, UserError
from state.layout import DATA_MANIFEST_NAME, HomeLayout
from state.ledger import DataRecord, RunRecord
from state.spec import RunSpec

TRAINING_MODULES = ("torch", "numpy", "safetensors", "sentencepiece")
_LEASE_EVERY_S = 5.0


def require_training_extra() -> None:
    """Check that what runs a session is installed.

    Raises:
        UserError: something is missing.
    """
    missing = [module for module in TRAINING_MODULES if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"this needs the training extra; not installed: {', '.join(missing)}",
            remedy="pip install 'gemma-orch[train]'",
        )


def worker_command(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line of a worker's verb."""
    return [sys.executable, "-m", "worker", verb, *arguments]


def hand_over(verb: str, arguments: Sequence[str]) -> int:
    """Run a worker's verb with our terminal, and return its exit code.

    Raises:
        UserError: the training extra is missing.
    """
    require_training_extra()
    child = subprocess.Popen(worker_command(verb, arguments))
    while True:
        try:
            exit_code = child.wait()
            return exit_code if exit_code >= 0 else 128 - exit_code  # as a shell tells of a command that a signal ended
        except KeyboardInterrupt:
            continue  # Ctrl-C reaches the child as well: it is the child that answers


class WorkerPreparer:
    """Makes a run's token shards with `python -m worker prepare`."""

    def __init__(self, home: HomeLayout, say: Callable[[str], None]) -> None:
        """Prepare into the home's run folders.

        Args:
            home: Where the runs lie.
            say: Told what was read and what was skipped.
        """
        self._home = home
        self._say = say

    def has_data(self, record: RunRecord) -> bool:
        """Return whether the data that a run was begun with is there: the manifest, and every shard in its size."""
        folder = self._home.run(record.name).data
        try:
            manifest = _manifest(folder)
            whole = all(
                (folder / shard.name).stat().st_size == shard.num_tokens * manifest.token_bytes
                for language in manifest.languages.values()
                for shard in language.shards
            )
        except (OSError, DataError):
            return False
        return whole and record.header.data is not None and manifest.data_sha256 == record.header.data.sha256

    def __call__(self, spec: RunSpec, keep_lease: Callable[[], None]) -> DataRecord:
        """Prepare a run's data, or find it prepared.

        Raises:
            GemmaOrchError: the corpus or the tokenizer is not usable; the worker has said why.
        """
        folder = self._home.run(spec.name).data
        arguments = [argument for corpus in spec.data.corpus for argument in ("--corpus", corpus)]
        if spec.data.tokenizer is not None:
            arguments += ["--tokenizer", spec.data.tokenizer]
        require_training_extra()
        folder.parent.mkdir(parents=True, exist_ok=True)
        child = subprocess.Popen(
            worker_command("prepare", [*arguments, "--out", str(folder), "--replace"]), stderr=subprocess.PIPE, text=True
        )
        said = self._wait(child, keep_lease)
        if child.returncode:
            raise _as_error(child.returncode, said)
        self._say(said.strip())
        return self._record(spec, folder)

    def _wait(self, child: subprocess.Popen[str], keep_lease: Callable[[], None]) -> str:
        while True:
            try:
                return child.communicate(timeout=_LEASE_EVERY_S)[1]
            except subprocess.TimeoutExpired:
                keep_lease()
            except BaseException:
                child.terminate()
                child.wait()
                raise

    @staticmethod
    def _record(spec: RunSpec, folder: Path) -> DataRecord:
        manifest = _manifest(folder)
        tokens = {language: data.num_tokens for language, data in manifest.languages.items()}
        mixture = mixture_weights(tokens, spec.data.alpha, spec.data.weights)
        _check_lengths(tokens, mixture, spec.data.sequence_length)
        return DataRecord(
            sha256=manifest.data_sha256,
            vocab_size=manifest.vocab_size,
            tokens=tokens,
            mixture=mixture,
        )


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
            f"too little text for one sequence of {sequence_length} tokens: {', '.join(short)}",
            expected=f"at least {sequence_length + 1} tokens in every language that is trained on",
            remedy="shorten sequence_length under [data] in the config file, add text, or give these languages the weight 0",
        )


def _as_error(exit_code: int, said: str) -> GemmaOrchError:
    message = said.strip() or f"preparing the data ended with exit code {exit_code}"
    match exit_code:
        case ExitCode.USER:
            return UserError(message)
        case ExitCode.DATA:
            return DataError(message)
        case _:
            return TemporaryError(message, remedy="the same command again goes on")
