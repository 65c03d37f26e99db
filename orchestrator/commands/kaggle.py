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
    data: Annotated[Path | None, typer.Argument(help="A folder of gemma-orch prepare; a run's data when left out.")] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring prepared data to private datasets of the Kaggle account; what is there already is not sent again.

    It may be ended at any moment: the same command goes on where it was.
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
        made_already(folder)  # a folder named wrongly is said before an account is looked for
    api = open_account(terminal.environment)
    place = Place(api, SystemClock(), terminal.home().cache / "kaggle", settings)
    place.resume_dir.mkdir(parents=True, exist_ok=True)
    talk = talk_on(Console(stderr=True), say)
    try:
        parts = [part for folder in folders for part in upload_data(place, folder, talk)]
    except KeyboardInterrupt:
        say("ended before all was sent; the same command goes on where it was")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        write_json(parts)
        return
    for part in parts:
        typer.echo(_line(api.user, part))
    say("next: gemma-orch start --backend kaggle, with this data: --data, or prepared under [data] in the config file")


def _line(user: str, part: UploadedPart) -> str:
    from state.quantities import format_size

    how = "sent" if part.sent else "stood already"
    return f"{user}/{part.slug} version {part.version}: {part.files} files, {format_size(part.bytes)}, {how}"


def _what_to_upload(terminal: Terminal, data: Path | None, run: str | None) -> tuple[list[Path], KaggleSettings]:
    from state.backend_settings import KaggleSettings
    from state.errors import UserError

    if data is not None:
        if run is not None:
            raise UserError(f"the folder {data} is given together with --run {run}", expected="one of the two")
        return [data.absolute()], KaggleSettings()
    ports = terminal.ports()
    if run is None and not ports.runs.names():
        raise UserError(
            f"no data is named, and there is no run in {ports.home.root} that has some",
            expected="a folder of gemma-orch prepare, or a run",
            remedy="gemma-orch upload DATA",
        )
    record = ports.runs.load(run_named(ports, run))
    if not record.header.data:
        raise UserError(
            f"run {record.name} has no data yet",
            expected="a run whose data is prepared, or a folder of gemma-orch prepare",
            remedy="gemma-orch prepare --corpus DIR --out data, then gemma-orch upload data",
        )
    layout = ports.home.run(record.name)
    return [layout.data_folder(version.folder) for version in record.header.data], record.spec.kaggle


def adopt(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="OWNER/RUN", help="The run, as it is named on the Kaggle account OWNER.")],
) -> None:
    """Go on, on this machine, with a run that another one began: all that is needed is on the Kaggle account.

    Nothing is brought twice, so it may stand before every tick of a scheduled job. Checkpoints stay where they are.
    """
    from orchestrator.backends.kaggle.account import open_account
    from orchestrator.backends.kaggle.adopt import read_account as adoption

    terminal = Terminal.of(context)
    ports = terminal.ports()
    adopted = adoption.adopt(open_account(terminal.environment), ports, run, say=say)
    record, name = adopted.record, adopted.run
    if not adopted.is_new and not adopted.num_attempts:
        typer.echo(f"run {name} is known here already, and the account shows no attempt that is not: nothing was brought")
        return
    brought = f"{adopted.num_attempts} attempt{'' if adopted.num_attempts == 1 else 's'}"
    if adopted.is_new:
        typer.echo(f"run {name} is adopted: {brought}, head at step {record.head_step} of {record.spec.total_steps}")
    else:
        typer.echo(f"run {name} was known here already; new are {brought}, and the head is at step {record.head_step}")
    live = record.live_attempt
    if live is not None:
        say(f"session {live.session} attempt {live.attempt} is {live.state}: no other one begins before it has ended")
    if record.header.message is not None:
        say(f"the run is {record.header.state}: {record.header.message}")
    say(f"gemma-orch status {name} shows it, gemma-orch start --name {name} goes on with it; one machine at a time")


def promote(
    context: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="A checkpoint, by id or unique prefix; all that lie in outputs of kernels only when left out."),
    ] = None,
    run: RunOption = None,
) -> None:
    """Bring checkpoints that kernels could only leave in their outputs into the datasets of the run.

    An output is gone when its kernel is. The bytes pass through this machine. Ended at any moment, the same command goes on.
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
        typer.echo(f"nothing is to be done: no checkpoint of run {record.name} lies in the output of a kernel only")
        return
    for promoted in promote_all(store, wanted, talk_on(Console(stderr=True), say)):
        how = "stands already" if promoted.stood_already else "stands now"
        typer.echo(f"{promoted.id} {how} in version {promoted.place.version} of {promoted.place.owner}/{promoted.place.slug}")


def publish(
    context: typer.Context,
    run: RunArgument = None,
    dataset_slug: Annotated[
        str | None, typer.Option(metavar="SLUG", help="The dataset's slug; gemma-orch-RUN-weights when left out.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint, by id or unique prefix; the head when left out.")] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no-verify", help="Read every byte back; when left out, unless there are more than 2 GiB."),
    ] = None,
    model: Annotated[bool, typer.Option("--model", help="Put them into a private Kaggle model of the run's as well.")] = False,
    model_licence: Annotated[
        str, typer.Option(metavar="NAME", help="With --model: the licence that Kaggle shows, as it spells it.")
    ] = "Other",
) -> None:
    """Put a run's weights into a private Kaggle dataset: both export formats, the tokenizer, and a card. A model too, if asked.

    The same command again sends nothing twice. Sharing it is done on kaggle.com, when the card says what you want it to.
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
        say(f"these are the weights of step {step} of {record.spec.total_steps}: the run is not at its end")
    api = open_account(terminal.environment)
    published = publish_weights(api, ports, record, wanted, say=say)
    how = "published" if published.is_new else "published already"
    read_back = "every byte read back" if published.is_verified else "names and sizes read back; --verify reads every byte"
    size = f"{len(published.publication.files)} files, {format_size(published.total_bytes)}"
    typer.echo(f"{wanted.checkpoint_id} is {how}: {size}, {read_back}")
    typer.echo(f"https://www.kaggle.com/datasets/{api.user}/{published.slug} (version {published.version}, private)")
    if not model:
        return
    for standing in publish_model(api, ports, record, published, licence=model_licence, say=say):
        how = "published" if standing.is_new else "published already"
        url = f"https://www.kaggle.com/models/{api.user}/{standing.form.model}"
        typer.echo(f"{url} has {standing.form.slug}, {how} (version {standing.version}, names and sizes read back)")
