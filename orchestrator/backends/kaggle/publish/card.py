"""Write the model card of published weights: training, data, shape, how to load them, licence. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.monitoring.speed import billed_seconds
from state.architecture import Architecture
from state.ledger import RunRecord
from state.lineage import ancestors
from state.manifest import Manifest
from state.quantities import format_duration

CARD_NAME = "README.md"


def model_card(record: RunRecord, manifest: Manifest, architecture: Architecture, files: Mapping[str, Sequence[str]]) -> str:
    """Return the card of a checkpoint's weights, as Markdown.

    Args:
        record: The run's record.
        manifest: The checkpoint's manifest.
        architecture: The model's architecture.
        files: Names of the published files, by format.
    """
    return "\n".join(
        [
            f"# {record.name}",
            "",
            f"A Gemma 3 of {architecture.num_parameters():,} parameters, trained from scratch to step {manifest.step:,} of "
            f"{record.spec.total_steps:,} with gemma-orch. It contains no weights of Google.",
            "",
            *_training(record, manifest),
            *_data(record, manifest),
            *_shape(architecture),
            *_loading(record.name, files),
            "## Licence",
            "",
            "You decide the licence of these weights: name it here and in the dataset's settings before you share them. "
            "The licences of the training text decide what the text allows, and whether its passages may be reproduced. The "
            "architecture is that of Gemma 3; the Gemma terms of use cover Google's weights, and none are included.",
            "",
        ]
    )


def card_without_files(card: str) -> str:
    """Return a card without its section on files, which describes a folder that holds both formats."""
    before, _, after = card.partition("## Files\n")
    return before + "".join(after.partition("## Licence\n")[1:])


def _training(record: RunRecord, manifest: Manifest) -> list[str]:
    spec, environment = record.spec.training, manifest.environment
    line = list(ancestors(manifest.id, record.parents))
    used = {(record.checkpoints[each].session, record.checkpoints[each].attempt) for each in line}
    attempts = [attempt for attempt in record.attempts if (attempt.session, attempt.attempt) in used]
    billed_s = sum(billed_seconds(attempt, attempt.ended_at or manifest.created_at) for attempt in attempts)
    schedule = f"{spec.schedule}, {spec.warmup_steps:,} steps of warm-up"
    return [
        "## Training",
        "",
        *_table(
            {
                "steps": f"{manifest.step:,}",
                "tokens": f"{manifest.data_position.samples * record.spec.data.sequence_length:,}",
                "loss at the next step": f"{manifest.next_loss:.4f}",
                "sessions": f"{len({attempt.session for attempt in record.attempts if attempt.branch is None}):,}",
                "time of the recorded sessions": format_duration(billed_s),
                "batch": f"{spec.batch_size:,} sequences of {record.spec.data.sequence_length:,} tokens",
                "optimizer": f"AdamW, betas {spec.beta1:g} and {spec.beta2:g}, eps {spec.eps:g}, "
                f"weight decay {spec.weight_decay:g}, gradients clipped at {spec.grad_clip:g}",
                "learning rate": f"{spec.learning_rate:g}, {schedule}",
                "precision": spec.dtype,
                "seed": f"{spec.seed}",
                "computed on": f"{environment.device}, torch {environment.torch}, Python {environment.python}",
                "checkpoint": f"`{manifest.id}`",
                "sha256 of the whole state": f"`{manifest.state_sha256}`",
            }
        ),
        "",
        "The same seed, data and machine give this state again, bit for bit, in any number of sessions.",
        "",
    ]


def _data(record: RunRecord, manifest: Manifest) -> list[str]:
    length = record.spec.data.sequence_length
    read = {language: samples * length for language, samples in manifest.data_position.samples_by_language.items()}
    lines = ["## Data", ""]
    for number, data in enumerate(record.header.data, start=1):
        if data.first_step >= manifest.step:
            continue
        if len(record.header.data) > 1:
            lines += [f"Version {number}, read from step {data.first_step + 1:,} on:", ""]
        lines += ["| language | tokens prepared | share of the sequences |", "|---|---:|---:|"]
        lines += [f"| {name} | {data.tokens.get(name, 0):,} | {share:.2%} |" for name, share in sorted(data.mixture.items())]
        lines += ["", f"sha256 of the tokens: `{data.sha256}`", ""]
    if read:
        lines += ["Tokens read in training, repetitions counted:", ""]
        lines += ["| language | tokens |", "|---|---:|", *(f"| {name} | {read[name]:,} |" for name in sorted(read)), ""]
    return lines


def _shape(architecture: Architecture) -> list[str]:
    values = {name.replace("_", " "): f"{value}" for name, value in architecture.model_dump(exclude={"schema_version"}).items()}
    return ["## Model", "", *_table({"parameters": f"{architecture.num_parameters():,}", **values}), ""]


def _loading(run: str, files: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [
        "## Files",
        "",
        "File names start with the name of their format. This script makes one folder for each format, as its readers expect it:",
        "",
        "```python",
        "import pathlib, shutil",
        "",
        'for path in pathlib.Path("weights").iterdir():  # the folder with the files',
        f"    form = next((form for form in {tuple(sorted(files))!r} if path.name.startswith(form + '.')), None)",
        "    if form is not None:",
        f"        folder = pathlib.Path({run!r}) / form",
        "        folder.mkdir(parents=True, exist_ok=True)",
        "        shutil.copy(path, folder / path.name.removeprefix(form + '.'))",
        "```",
        "",
        "| format | reader | files |",
        "|---|---|---|",
    ]
    readers = {
        "gemma-pytorch": 'google/gemma_pytorch: `model.load_weights("gemma-pytorch/model.ckpt")`',
        "hf": 'transformers: `AutoModelForCausalLM.from_pretrained("hf")`, `AutoTokenizer.from_pretrained("hf")`',
    }
    lines += [
        f"| {form} | {readers.get(form, '')} | {', '.join(f'`{name}`' for name in files[form])} |" for form in sorted(files)
    ]
    return [*lines, ""]


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
