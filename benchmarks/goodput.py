"""Goodput of a local chain of 10 sessions of 30 s each: seconds of training that survived over seconds billed.

Process start, imports, restore, canary and the last save are all billed.
Run: python -m benchmarks.goodput [MODEL]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from benchmarks.measure import verdict

NUM_SESSIONS = 10
SESSION_LIMIT = "30s"
DEADLINE_S = 600


def main() -> int:
    """Run the chain, print its goodput, and return 1 when it is too low."""
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "GEMMA_ORCH_HOME": home}

        def command(*arguments: str) -> list[str]:
            return [sys.executable, "-m", "orchestrator", *arguments]

        start = command(
            "start", "--total-steps", "1000000000", "--model", model, "--session-limit", SESSION_LIMIT, "--name", "chain"
        )
        controller = subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                status = subprocess.run(command("status", "chain", "--json"), env=environment, capture_output=True, check=False)
                view = json.loads(status.stdout) if status.returncode == 0 else {"sessions": []}
                over = [session for session in view["sessions"] if session["ended_at"] is not None]
                if len(over) >= NUM_SESSIONS or controller.poll() is not None:
                    break
                try:
                    controller.wait(5)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            controller.kill()
            subprocess.run(command("stop", "--now", "chain"), env=environment, check=False, capture_output=True)
    for session in over:
        print(
            f"session {session['number']}: {session['duration_s']:.1f} s, steps {session['start_step']} to {session['end_step']}"
        )
    return (
        0
        if verdict(f"goodput of {len(over)} sessions of {SESSION_LIMIT}, {model}", view["goodput"], at_least=0.8, unit="")
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
