"""One round of the gate: every event for every app, apps side by side, each cell timed and judged.

Guarantees: an event that fails is told with its reason and the round goes on; a node-wide event (reboot, service
restart) happens once for all apps; an app comes up after those it needs, and goes before them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from apps.problems import Problem
from tests.system.gate.stand import WAIT_SECONDS, WORK, GateApp, GateFailure, Stand

SETTLE_SECONDS: Final = 20.0
"""Until a page is as it was: a companion's comes after its app is well, and names are told to networks in passing."""


@dataclass(frozen=True)
class Cell:
    """How one event went for one app."""

    app: str
    event: str
    iteration: int
    ok: bool
    seconds: float
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Round:
    """One app's way through one iteration; `before` is what the last look at its page said."""

    def __init__(self, stand: Stand, app: GateApp) -> None:
        self.stand, self.app = stand, app
        self.before: dict[str, Any] = {}
        self.now: dict[str, Any] = {}
        self.containers: dict[str, str] = {}

    def install(self) -> None:
        status = self.stand.archy("install", self.app.id, "--yes")["status"]
        _check(status["state"] == "running", f"installed, and is {status['state']}")

    def reachable(self) -> None:
        """Also over an uninstall that kept the data: the counter goes on where it was."""
        self.stand.wait(lambda: self.stand.answers(self.app), f"{self.app.id} does not answer", SETTLE_SECONDS)
        self.before = self.stand.page(self.app)
        _check(self.before["counter"] >= 1, f"counter is {self.before['counter']}")
        beside = self.before.get("beside", "")
        _check(beside == self.app.beside, f"it reads {beside!r} of what it works with")

    def stop(self) -> None:
        began = time.monotonic()
        status = self.stand.archy("stop", self.app.id)["status"]
        took = time.monotonic() - began
        _check(status["state"] == "stopped", f"stopped, and is {status['state']}")
        least, most = self.app.stop_seconds
        _check(least <= took <= most, f"the stop took {took:.1f} s, not {least:g} to {most:g}")
        held = self.stand.shell(f"ss -tlnH 'sport = :{self.app.port}'")
        _check(not held.strip(), f"port {self.app.port} is still held: {held.strip()}")
        _check(not self.stand.started(self.app), "containers are left")
        _check(not self.stand.answers(self.app), "it still answers")

    def start(self) -> None:
        status = self.stand.archy("start", self.app.id)["status"]
        _check(status["state"] == "running", f"started, and is {status['state']}")
        self._same_data(starts=1)

    def restart(self) -> None:
        self._same_data(starts=0)  # those that it needs were restarted just now
        old = self.stand.started(self.app)
        self.stand.archy("restart", self.app.id)
        new = self.stand.started(self.app)
        _check(set(new) == set(old), f"containers were {sorted(old)} and are {sorted(new)}")
        _check(all(new[name] != old[name] for name in new), "not every container was restarted")
        self._same_data(starts=1)

    def reinstall(self) -> None:
        old = self.stand.started(self.app)
        self.stand.archy("install", self.app.id, "--yes")
        _check(self.stand.started(self.app) == old, "the same release again restarted something")
        self._same_data(starts=0)

    def after_reboot(self) -> None:
        self.stand.wait(self._is_running, f"{self.app.id} is not running for the node")
        self._same_data(starts=1, seconds=WAIT_SECONDS)

    def before_service(self) -> None:
        self.containers = self.stand.started(self.app)

    def after_service(self) -> None:
        _check(self.stand.started(self.app) == self.containers, "the service's restart restarted a container")
        _check(self._is_running(), "the node does not see it running")
        self._same_data(starts=0)

    def uninstall(self) -> None:
        self.stand.archy("uninstall", self.app.id)
        left = self.stand.shell(
            f"ls ~/.config/containers/systemd | grep -- -{self.app.id}-; "
            f"podman ps -a --format '{{{{.Names}}}}' | grep -- -{self.app.id}-; "
            f"podman network ls --format '{{{{.Name}}}} {{{{.Labels}}}}' | grep -- '[-=]{self.app.id}-'; "
            f"podman secret ls --noheading --format '{{{{.Name}}}}' | grep -- -{self.app.id}-; "
            f"podman images --format '{{{{.Repository}}}}' | grep -- /{self.app.id}-; "
            f"systemctl --user list-units --all --plain --no-legend 'archy-{self.app.id}-*'; "
            f"ls {WORK}/op/apps/derived | grep ^{self.app.id}-"
        )
        _check(not left.strip(), f"left behind: {' '.join(left.split())}")
        findings = {finding["name"]: finding for finding in self.stand.archy("doctor", codes=(0, 4))["findings"]}
        _check(f"-{self.app.id}-" not in findings["orphans"]["detail"], f"doctor finds {findings['orphans']['detail']}")
        kept = self.stand.shell(f"podman volume ls --format '{{{{.Name}}}}' | grep -- -{self.app.id}-")
        _check(bool(kept.strip()), "its data is gone")
        _check(not self.stand.answers(self.app), "it still answers")

    def _is_running(self) -> bool:
        state = self.stand.state(self.app)
        return state is not None and state["state"] == "running"

    def _same_data(self, *, starts: int, seconds: float = SETTLE_SECONDS) -> None:
        """The data, the secret and what it integrates with are as they were, but for the count of starts."""
        wanted = self.before | {"counter": self.before["counter"] + starts}

        def so() -> bool:
            self.now = self.stand.page(self.app) if self.stand.answers(self.app) else {}
            return self.now == wanted

        try:
            self.stand.wait(so, "not the same", seconds)
        except GateFailure as failure:
            raise GateFailure(f"its page says {self.now or 'nothing'}, not {wanted}") from failure
        self.before = wanted


def _check(good: bool, otherwise: str) -> None:
    if not good:
        raise GateFailure(otherwise)


EVENTS: Final = (
    "install",
    "ui reachable",
    "stop",
    "start",
    "restart",
    "reinstall",
    "reboot",
    "service restart",
    "uninstall",
)

Told = Callable[[Cell], None]


def play(stand: Stand, apps: Sequence[GateApp], iteration: int, told: Told) -> list[Cell]:
    """One round; every cell, also handed to `told` as it comes. `apps` has those that an app needs before it."""
    rounds = [Round(stand, app) for app in apps]
    score = _Score(rounds, iteration, told)

    def restart_service() -> None:
        for each in rounds:
            each.before_service()
        stand.node.run(["systemctl", "--user", "restart", "archy.service"], timeout=150)

    score.event("install", Round.install)
    score.event("ui reachable", Round.reachable)
    score.event("stop", Round.stop, down=True)
    score.event("start", Round.start)
    score.event("restart", Round.restart)
    score.event("reinstall", Round.reinstall)
    score.event("reboot", Round.after_reboot, first=stand.node.reboot)
    score.event("service restart", Round.after_service, first=restart_service)
    score.event("uninstall", Round.uninstall, down=True)
    stand.serve()
    return score.cells


class _Score:
    """Plays events, each for all apps at once as far as they do not need one another, and keeps the cells."""

    def __init__(self, rounds: Sequence[Round], iteration: int, told: Told) -> None:
        self._rounds, self._iteration, self._told = rounds, iteration, told
        self.cells: list[Cell] = []

    def event(
        self, name: str, do: Callable[[Round], None], *, down: bool = False, first: Callable[[], None] | None = None
    ) -> None:
        """`first` happens once, for the whole node. `down`: an app goes after those that need it."""
        began = time.monotonic()
        fault = _fault(first) if first is not None else ""
        common = time.monotonic() - began
        going: dict[str, Future[Cell]] = {}

        def one(each: Round, others: Sequence[Future[Cell]]) -> Cell:
            for other in others:
                other.result()
            began = time.monotonic()
            said = fault or _fault(lambda: do(each))
            return Cell(each.app.id, name, self._iteration, not said, round(common + time.monotonic() - began, 2), said)

        with ThreadPoolExecutor(len(self._rounds)) as pool:
            for each in reversed(self._rounds) if down else self._rounds:
                others = self._dependants(each) if down else each.app.needs
                going[each.app.id] = pool.submit(one, each, [going[id_] for id_ in others])
            for each in self._rounds:
                self.cells.append(going[each.app.id].result())
                self._told(self.cells[-1])

    def _dependants(self, each: Round) -> list[str]:
        return [other.app.id for other in self._rounds if each.app.id in other.app.needs]


def _fault(do: Callable[[], None]) -> str:
    """Why it did not work; empty when it did."""
    try:
        do()
    except (GateFailure, Problem, KeyError, ValueError) as error:
        return f"{type(error).__name__}: {error}" if isinstance(error, KeyError | ValueError) else str(error)
    return ""
