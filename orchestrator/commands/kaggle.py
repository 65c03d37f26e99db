"""Commands for a Kaggle account: upload data, adopt a run, promote checkpoints, publish weights, write a config file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.context import INTERRUPTED, JsonOption, RunArgument, RunOption, Terminal, say, write_json
from orchestrator.commands.lookup import checkpoint_named, run_named

if TYPE_CHECKING:
    from orchestrator.backends.kaggle.data.upload import UploadedPart
    from state.backend_settings import KaggleSettings


def upload(
    context: typer.Context,
    data: Annotated[Path | None, typer.Argument(help="Prepared data folder; default: the run's data.")] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload prepared data to private datasets of the Kaggle account; skip what is already there.

    Interrupted at any moment, the same command resumes.
    """
    from rich.console import Console

    from orchestrator.backends.kaggle.account import open_account
    from orchestrator.backends.kaggle.data.progress import talk_on
    from orchestrator.backends.kaggle.data.upload import Place, upload_data
    from orchestrator.worker_process.prepare import made_already
    from state.clock import SystemClock

    terminal = Terminal.of(context)
    folders, settings = _what_to_upload(terminal, data, run)
    for folder in folders:
        made_already(folder)  # reports a mistyped folder before credentials are needed
    api = open_account(terminal.environment)
    place = Place(api, SystemClock(), terminal.home().cache / "kaggle", settings)
    place.resume_dir.mkdir(parents=True, exist_ok=True)
    talk = talk_on(Console(stderr=True), say)
    try:
        parts = [part for folder in folders for part in upload_data(place, folder, talk)]
    except KeyboardInterrupt:
        say("upload interrupted; the same command resumes it")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        write_json(parts)
        return
    for part in parts:
        typer.echo(_line(api.user, part))
    say("next: gemma-orch start --backend kaggle --data DIR, or `prepared` under [data] in the config file")


def _line(user: str, part: UploadedPart) -> str:
    from state.quantities import format_size

    how = "uploaded" if part.sent else "already there"
    return f"{user}/{part.slug} version {part.version}: {part.files} files, {format_size(part.bytes)}, {how}"


def _what_to_upload(terminal: Terminal, data: Path | None, run: str | None) -> tuple[list[Path], KaggleSettings]:
    from state.backend_settings import KaggleSettings
    from state.errors import UserError

    if data is not None:
        if run is not None:
            raise UserError(f"the folder {data} cannot be combined with --run {run}", expected="one of the two")
        return [data.absolute()], KaggleSettings()
    ports = terminal.ports()
    if run is None and not ports.runs.names():
        raise UserError(
            f"data folder is missing, and {ports.home.root} has no run to take it from",
            expected="a prepared data folder, or a run",
            remedy="gemma-orch upload DATA",
        )
    record = ports.runs.load(run_named(ports, run))
    if not record.header.data:
        raise UserError(
            f"run {record.name} has no data yet",
            expected="a run whose data is prepared, or a prepared data folder",
            remedy="gemma-orch prepare --corpus DIR --out data, then gemma-orch upload data",
        )
    layout = ports.home.run(record.name)
    return [layout.data_folder(version.folder) for version in record.header.data], record.spec.kaggle


def adopt(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="OWNER/RUN", help="The run's name on the Kaggle account OWNER.")],
) -> None:
    """Bring a run from the Kaggle account to this machine, to continue it here.

    Repeating it brings only what is new, so a scheduled job may call it before every tick. Checkpoints stay on the account.
    """
    from orchestrator.backends.kaggle.account import open_account
    from orchestrator.backends.kaggle.adopt import read_account as adoption

    terminal = Terminal.of(context)
    ports = terminal.ports()
    adopted = adoption.adopt(open_account(terminal.environment), ports, run, say=say)
    record, name = adopted.record, adopted.run
    if not adopted.is_new and not adopted.num_attempts:
        typer.echo(f"run {name} is up to date: the account shows no new attempt")
        return
    brought = f"{adopted.num_attempts} attempt{'' if adopted.num_attempts == 1 else 's'}"
    if adopted.is_new:
        typer.echo(f"run {name} adopted: {brought}, head at step {record.head_step} of {record.spec.total_steps}")
    else:
        typer.echo(f"run {name} updated: {brought} new, head at step {record.head_step}")
    live = record.live_attempt
    if live is not None:
        say(f"session {live.session} attempt {live.attempt} is {live.state}: the next session waits for its end")
    if record.header.message is not None:
        say(f"the run is {record.header.state}: {record.header.message}")
    say(f"show it: gemma-orch status {name}; continue it, on one machine at a time: gemma-orch start --name {name}")


def promote(
    context: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Checkpoint id or unique prefix; default: all that exist only in a kernel's output."),
    ] = None,
    run: RunOption = None,
) -> None:
    """Copy checkpoints that exist only in a kernel's output into the run's datasets.

    Deleting a kernel deletes its output. The bytes pass through this machine. Interrupted, the same command resumes.
    """
    from rich.console import Console

    from orchestrator.backends.kaggle.checkpoints.promote import checkpoints_of, promote_all, to_promote
    from orchestrator.backends.kaggle.data.progress import talk_on

    terminal = Terminal.of(context)
    ports = terminal.ports()
    record = ports.runs.load(run_named(ports, run))
    store = checkpoints_of(ports, record)
    wanted = to_promote(record, store, checkpoint_named(record, checkpoint) if checkpoint is not None else None)
    if not wanted:
        typer.echo(f"nothing to promote: no checkpoint of run {record.name} exists only in a kernel's output")
        return
    for promoted in promote_all(store, wanted, talk_on(Console(stderr=True), say)):
        how = "is already" if promoted.stood_already else "is now"
        typer.echo(f"{promoted.id} {how} in version {promoted.place.version} of {promoted.place.owner}/{promoted.place.slug}")


def publish(
    context: typer.Context,
    run: RunArgument = None,
    dataset_slug: Annotated[
        str | None, typer.Option(metavar="SLUG", help="Slug of the dataset; default: gemma-orch-RUN-weights.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint id or unique prefix; default: the head.")] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no-verify", help="Read every byte back; default: yes, up to 2 GiB."),
    ] = None,
    model: Annotated[bool, typer.Option("--model", help="Also publish the weights as a private Kaggle model.")] = False,
    model_licence: Annotated[
        str, typer.Option(metavar="NAME", help="With --model: the licence that Kaggle shows, in Kaggle's spelling.")
    ] = "Other",
) -> None:
    """Publish a run's weights as a private Kaggle dataset: both export formats, the tokenizer, and a card.

    Repeating it uploads nothing twice. To share the weights, review the card, then make the dataset public on kaggle.com.
    """
    from orchestrator.backends.kaggle.account import open_account
    from orchestrator.backends.kaggle.publish.dataset import Wanted
    from orchestrator.backends.kaggle.publish.dataset import publish as publish_weights
    from orchestrator.backends.kaggle.publish.model import publish_model
    from state.quantities import format_size

    terminal = Terminal.of(context)
    ports = terminal.ports()
    record = ports.runs.load(run_named(ports, run))
    wanted = Wanted(checkpoint_named(record, checkpoint), dataset_slug, verify, keep=model)
    step = record.checkpoints[wanted.checkpoint_id].step
    if step < record.spec.total_steps:
        say(f"the run is not finished: publishing the weights of step {step} of {record.spec.total_steps}")
    api = open_account(terminal.environment)
    published = publish_weights(api, ports, record, wanted, say=say)
    how = "published" if published.is_new else "already published"
    read_back = "every byte read back" if published.is_verified else "names and sizes read back; --verify reads every byte"
    size = f"{len(published.publication.files)} files, {format_size(published.total_bytes)}"
    typer.echo(f"{wanted.checkpoint_id} is {how}: {size}, {read_back}")
    typer.echo(f"https://www.kaggle.com/datasets/{api.user}/{published.slug} (version {published.version}, private)")
    if not model:
        return
    for standing in publish_model(api, ports, record, published, licence=model_licence, say=say):
        how = "published" if standing.is_new else "already published"
        url = f"https://www.kaggle.com/models/{api.user}/{standing.form.model}"
        typer.echo(f"{url} has {standing.form.slug}, {how} (version {standing.version}, names and sizes read back)")
