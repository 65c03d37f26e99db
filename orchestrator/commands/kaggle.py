"""Commands for the Kaggle account: bring data to it, write a config file for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.context import INTERRUPTED, JsonOption, RunOption, Terminal, say, write_json
from orchestrator.commands.lookup import run_named

if TYPE_CHECKING:
    from orchestrator.backends.kaggle.data.upload import UploadedPart
    from state.backend_settings import KaggleSettings

_DEFAULT_NAME = "my-gemma"


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


def config_for_kaggle(environment: Mapping[str, str], name: str | None, owner: str | None) -> str:
    """Return a config file for a run on Kaggle; on a terminal, ask for what was not said.

    Raises:
        UserError: a name on the account would not be possible.
    """
    from orchestrator.backends.kaggle.account import find_user
    from orchestrator.backends.kaggle.config_template import check_names, check_owner, kaggle_template, slugs_of
    from state.kaggle.names import check_run_fits
    from state.layout import check_run_name

    found, where = find_user(environment)
    if found is not None and owner not in (None, found):
        say(f"the credentials of {where} are those of {found}, not of {owner}: gemma-orch will look for {owner}'s")
    asks = sys.stdin.isatty()
    if owner is None and asks:
        owner = _asked("Kaggle user name", found, check_owner)
    elif owner is None and found is None:
        say(f"{where}\nuntil then the owner stays open in the config file: it will be the account of the credentials")
    if name is None:
        name = _asked("name of the run", _DEFAULT_NAME, check_run_name, check_run_fits) if asks else _DEFAULT_NAME
    owner = owner or found
    check_names(name, owner)
    say("on the account it will have " + ", ".join(f"{owner or 'OWNER'}/{slug}" for slug in slugs_of(name)) + " and so on")
    return kaggle_template(name, owner)


def _asked(question: str, default: str | None, *checks: Callable[[str], object]) -> str:
    """Return what the user answers to a question; what cannot be is asked for again."""
    from state.errors import UserError

    while True:
        answer = str(typer.prompt(question, default=default, err=True)).strip()
        try:
            for check in checks:
                check(answer)
        except UserError as error:
            say(f"{error.what}\nExpected: {error.expected}")
        else:
            return answer
