"""Makes the batches of a run whose data has versions: each step reads from the version that begins last before it.

Each version has its own order of samples, counted from its own first step. The first version uses the run's seed as it is.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from pathlib import Path

from state.data_manifest import DataManifest
from state.document import digest_of
from state.errors import UserError
from state.manifest import DataPosition
from state.spec import Reading, SessionData, SessionSpec
from worker.data.batches import Batches, TokenData, read_data_manifest
from worker.data.permutation import I64Array
from worker.data.scratch import Scratch

_SEEDS = 2**63


def version_seed(seed: int, version: SessionData) -> int:
    """Return the seed of a version's order: the run's seed for the first one, else a digest of seed, first step and data."""
    if version.first_step == 0:
        return seed
    return int(digest_of(["data version", seed, version.first_step, version.data_sha256]), 16) % _SEEDS


def open_version(spec: SessionSpec, version: SessionData, *, say: Callable[[str], None] = lambda _: None) -> Batches:
    """Return a version's batches; its step 0 is the run's step `first_step`.

    Raises:
        DataError: the folder or a shard is missing, or does not match its manifest.
        UserError: the folder holds other data than the spec names, or was encoded for another vocabulary.
    """
    data = TokenData.open(Path(version.data_dir), _manifest(spec, version), spec.sequence_length, _scratch(spec.reading))
    seed = version_seed(spec.training.seed, version)
    return Batches(data, seed=seed, batch_size=spec.training.batch_size, weights=version.mixture, say=say)


def open_versions(spec: SessionSpec, *, say: Callable[[str], None] = lambda _: None) -> VersionedBatches:
    """Return a run's batches.

    Raises:
        DataError: a folder or a shard is missing, or does not match its manifest.
        UserError: a folder holds other data than the spec names, or was encoded with another tokenizer.
    """
    opened = [open_version(spec, version, say=say) for version in spec.data]
    first = opened[0].data.manifest
    for version, batches in zip(spec.data, opened, strict=True):
        if batches.data.manifest.tokenizer_sha256 != first.tokenizer_sha256:
            raise UserError(
                f"the data in {version.data_dir} was encoded with another tokenizer than the data in {spec.data[0].data_dir}",
                expected=f"the run's tokenizer, sha256 {first.tokenizer_sha256[:12]}",
                remedy="prepare it with the run's tokenizer",
            )
    return VersionedBatches([version.first_step for version in spec.data], opened)


class VersionedBatches:
    """What each step of the run trains on.

    Args:
        first_steps: The first step of each version, increasing from 0.
        versions: The batches of each version.
    """

    def __init__(self, first_steps: Sequence[int], versions: Sequence[Batches]) -> None:
        self._first_steps = tuple(first_steps)
        self._versions = tuple(versions)

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> tuple[I64Array, I64Array]:
        """Return (inputs, targets) of a step, [B / world_size, T] each: a rank's contiguous part of the batch.

        Call `settle` before you keep anything computed from the batch.

        Raises:
            DataError: a block's digest, of this step or an earlier one, differs from the manifest.
            TemporaryError: a shard cannot be read.
        """
        number = self._version_of(step)
        for past in self._versions[:number]:
            past.close()  # frees its room in scratch for the next version
        return self._versions[number].batch(step - self._first_steps[number], rank=rank, world_size=world_size)

    def settle(self) -> None:
        """Wait until everything returned so far is verified. Raises the same errors as `batch`."""
        for batches in self._versions:
            batches.settle()

    def batch_languages(self, step: int) -> list[str]:
        """Return the language of each of a step's sequences, in the order of the batch."""
        number = self._version_of(step)
        return self._versions[number].batch_languages(step - self._first_steps[number])

    def data_position(self, step: int) -> DataPosition:
        """Return how far the data has been read after `step` steps, summed over all versions."""
        samples, by_language = 0, dict[str, int]()
        ends = [*self._first_steps[1:], step]
        for first, end, batches in zip(self._first_steps, ends, self._versions, strict=True):
            if first != 0 and first >= step:
                break
            position = batches.data_position(min(end, step) - first)
            samples += position.samples
            for name, count in position.samples_by_language.items():
                by_language[name] = by_language.get(name, 0) + count
        return DataPosition(samples=samples, samples_by_language=by_language)

    def close(self) -> None:
        """Free scratch and end the threads; batches can still be read, from the data folders."""
        for batches in self._versions:
            batches.close()

    def _version_of(self, step: int) -> int:
        return bisect.bisect_right(self._first_steps, step) - 1


def _manifest(spec: SessionSpec, version: SessionData) -> DataManifest:
    manifest = read_data_manifest(Path(version.data_dir))
    if manifest.data_sha256 != version.data_sha256:
        raise UserError(
            f"the data in {version.data_dir} has digest {manifest.data_sha256[:12]}",
            expected=f"{version.data_sha256[:12]}, the data that this run is trained on",
            remedy="prepare it again from the same corpus and tokenizer, or start another run with --name",
        )
    if manifest.vocab_size != spec.architecture.vocab_size:
        raise UserError(
            f"the data in {version.data_dir} was encoded with {manifest.vocab_size} pieces",
            expected=f"{spec.architecture.vocab_size}, the model's vocabulary",
            remedy="prepare the data with the run's tokenizer, or start another run with --name",
        )
    return manifest


def _scratch(reading: Reading) -> Scratch | None:
    if reading.scratch_dir is None:
        return None
    return Scratch(Path(reading.scratch_dir), reading.scratch_bytes)
