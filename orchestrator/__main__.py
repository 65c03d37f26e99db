"""`python -m orchestrator` is `gemma-orch`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
