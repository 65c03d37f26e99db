"""A third kind of backend, as a contributor would add one: scripted sessions, and its own place for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.config import TEMPLATE
from orchestrator.ports import ConfigWishes, Finding, Ports, Services
from state.errors import UserError
from state.layout import HomeLayout
from state.ledger import RunRecord
from state.stores.checkpoint_store import DirectoryCheckpointStore


class ToyBackend(SimulatedBackend):
    name = "toy"
    poll_interval_s = 0.01
    can_be_run_by_hand = False


class OpenToy:
    def __init__(self, services: Services) -> None:
        self._services = services

    def backend(self, run: str) -> ToyBackend:
        services = self._services
        return ToyBackend(services.home.root / "toys", self.checkpoints(run), services.clock, lambda _s, _a: Scenario())

    def checkpoints(self, run: str) -> DirectoryCheckpointStore:
        return DirectoryCheckpointStore(self._services.home.root / "toy box" / run)


class ToyKind:
    name = "toy"
    trains_here = False
    has_live_check = False
    before_start = "wind it up"
    after_doctor = "play"

    def check_run(self, name: str) -> None:
        if name.startswith("broken"):
            raise UserError(f"{name} is no name for a toy", remedy="choose another --name")

    def config_file(self, environment: Mapping[str, str], wishes: ConfigWishes, say: Callable[[str], None]) -> str:
        say(f"a toy of {wishes.owner}")
        return TEMPLATE.replace('# backend = "local"', 'backend = "toy"')

    def examine(
        self, environment: Mapping[str, str], home: HomeLayout, say: Callable[[str], None], *, live_check: bool
    ) -> tuple[Finding, ...]:
        return (Finding(subject="spring", found="wound up", ok=True),)

    def advice(self, ports: Ports, record: RunRecord) -> str:
        return f"put {record.name} back into its box"

    def open(self, services: Services) -> OpenToy:
        return OpenToy(services)
