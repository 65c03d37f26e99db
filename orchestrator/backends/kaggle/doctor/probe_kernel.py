"""The kernel that `doctor --live-check` pushes: it reports the environment of a session.

It is pushed as text, with a last line that calls `main`, so it imports only the standard library.
"""

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "pydantic", "safetensors", "sentencepiece", "kaggle", "kagglesdk", "requests")
REPORT_NAME = "live_check.json"
LINE = "LIVE-CHECK "
LONGEST_S = 3600.0


def main(check: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Run the check's mode: wait for the time limit, or report the environment."""
    if check["mode"] == "limit":
        wait_for_the_end(Path(check["kept"]))
    else:
        report = examine(check, environment)
        print(LINE + json.dumps(report), flush=True)  # noqa: T201 -- the log is there also when the outputs are lost
        Path(REPORT_NAME).write_text(json.dumps(report), encoding="utf-8")


def examine(check: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return a report of this session's environment, without secrets: it has the names of variables, not their values."""
    return {
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "devices": devices(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "variables": sorted(name for name in environment if name.startswith("KAGGLE")),
        "mounted": mounted(Path(check["input"]), check["name"]),
        "upload": upload(check, environment),
    }


def devices() -> list[str]:
    """Return the names of the GPUs."""
    try:
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return []
    return asked.stdout.splitlines() if asked.returncode == 0 else []


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def mounted(root: Path, name: str) -> list[dict[str, str]]:
    """Return each path at which a canary is mounted, and its nonce, which identifies the version."""
    found = []
    for path in sorted(root.rglob(name)):
        with contextlib.suppress(OSError, ValueError):
            found.append({"path": str(path), "nonce": str(json.loads(path.read_text(encoding="utf-8")).get("nonce"))})
    return found


def upload(check: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Create a version of the canary dataset with the session's own token; return the error, or an empty one."""
    token_file = environment.get("KAGGLE_API_V1_TOKEN", "")
    if not token_file or not Path(token_file).is_file():
        return {"error": "the session has no token"}
    try:
        base = address(environment)
        token = Path(token_file).read_text(encoding="utf-8").strip()
        data = json.dumps({"nonce": check["nonce"], "written_at": check["written_at"]}).encode()
        start = {
            "type": "DATASET",
            "name": check["name"],
            "contentLength": len(data),
            "lastModifiedEpochSeconds": int(time.time()),
        }
        opened = call(base, token, "blobs.BlobApiService/StartBlobUpload", start)
        urllib.request.urlopen(urllib.request.Request(opened["createUrl"], data, method="PUT"), timeout=60).close()  # noqa: S310
        body = {"versionNotes": check["notes"], "files": [{"token": opened["token"]}]}
        version = {"ownerSlug": check["owner"], "datasetSlug": check["slug"], "body": body}
        made = call(base, token, "datasets.DatasetApiService/CreateDatasetVersion", version)
    except urllib.error.HTTPError as error:
        return {"error": f"HTTP {error.code}: {error.read(300).decode('utf-8', 'replace')}"}
    except (OSError, ValueError, KeyError) as error:
        return {"error": f"{type(error).__name__}: {getattr(error, 'reason', '')}"}
    return {"error": made.get("error") or ""}


def address(environment: Mapping[str, str]) -> str:
    """Return the base address that Kaggle's own client would call."""
    return "http://localhost/api" if environment.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST" else "https://api.kaggle.com"


def call(base: str, token: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
    """Call a method of Kaggle's API, and return its answer."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{base}/v1/{method}", json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return dict(json.load(answer))


def wait_for_the_end(kept: Path) -> None:
    """Wait until Kaggle ends the session; write a file, and print each SIGTERM, to show how it ends."""
    began = time.monotonic()
    kept.write_text("written before the limit", encoding="utf-8")

    def note(number: int, _frame: object) -> None:
        print(f"{LINE}signal {number} after {time.monotonic() - began:.1f}", flush=True)  # noqa: T201

    signal.signal(signal.SIGTERM, note)
    print(f"{LINE}waiting", flush=True)  # noqa: T201
    while time.monotonic() - began < LONGEST_S:
        time.sleep(1.0)
