"""Run the emulator by hand: `python -m tests.kaggle_emulator --timescale 3600`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from tests.kaggle_emulator.emulator import KaggleEmulator
from tests.kaggle_emulator.settings import Settings

_TYPES = {"str": str, "int": int, "float": float}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kaggle_emulator", description="A Kaggle on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--state", type=Path, help="folder for its files; a temporary one if not given")
    for setting in fields(Settings):
        option = f"--{setting.name.replace('_', '-')}"
        kind = str(setting.type).split("|")[0].strip()
        if kind == "bool":
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
        elif setting.name == "start_at":
            parser.add_argument(
                option, type=datetime.fromisoformat, help="with its offset: 2026-11-23T00:00+00:00; now if not given"
            )
        elif "Mapping" not in kind:
            parser.add_argument(option, type=_TYPES.get(kind, str))
    options = vars(parser.parse_args())
    port, state = options.pop("port"), options.pop("state")
    options["timescale"] = 1.0 if options["timescale"] is None else options["timescale"]
    options["start_at"] = options["start_at"] or datetime.now(UTC)
    settings = Settings(**{name: value for name, value in options.items() if value is not None})
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="kaggle-emulator-") as temporary:
        folder = state or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        home = folder / "home"
        home.mkdir(exist_ok=True)
        with KaggleEmulator(folder, settings, port=port, keep=state is not None) as emulator:
            for name, value in emulator.client_environment(home).items():
                sys.stdout.write(f"export {name}={value}\n")
            sys.stdout.write(f"# admin: {emulator.url}/__emulator__/sessions, files: {emulator.folder}\n")
            sys.stdout.flush()
            stop.wait()


if __name__ == "__main__":
    main()
