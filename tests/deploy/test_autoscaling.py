"""The scaler that the chart renders, carried out: its queries asked of a live Prometheus, KEDA's and the HPA's formula
applied, replicas started and stopped, while locust's users read streams."""

import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import LEAST, of_kind, render
from tests.deploy.fleet.fleet import HEALTH_CHECK_S, Fleet, fleet_of
from tests.deploy.fleet.proxies import proxy
from tests.deploy.programs import need_program
from tests.deploy.prometheus import Prometheus, prometheus

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(400)]

SECONDS_OF_LOAD = 30
WAIT_S = 6.0
"""In place of the 300 s for which the chart's scaler waits before it scales down."""


def wanted(values: Sequence[tuple[float, float]], least: int, most: int) -> int:
    """What an HPA makes of external metrics with an average target per replica: the largest, within its bounds.

    Source: Kubernetes, Horizontal Pod Autoscaling, algorithm details; KEDA, Prometheus scaler.
    """
    return min(max(least, *(math.ceil(value / target) for value, target in values)), most)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([(0, 4)], 1), ([(5, 4)], 2), ([(8, 4)], 2), ([(1, 4), (100, 10)], 3), ([(7, 4), (11, 10)], 2)],
)
def test_largest_want_counts(values: list[tuple[float, float]], expected: int) -> None:
    assert wanted(values, 1, 3) == expected


@dataclass(slots=True, kw_only=True)
class Scaler:
    """Does with a fleet what KEDA and the HPA do with a Deployment."""

    spec: dict[str, Any]
    fleet: Fleet
    watcher: Prometheus
    pods: dict[str, int] = field(default_factory=dict)
    history: list[int] = field(default_factory=list)
    wants: list[tuple[float, int]] = field(default_factory=list)

    def look(self) -> None:
        """Ask, and follow the answer: up at once, down to the largest want of the last seconds, one at a time."""
        triggers = [trigger["metadata"] for trigger in self.spec["triggers"]]
        values = [(self.watcher.value(one["query"]), float(one["threshold"])) for one in triggers]
        want = wanted(values, self.spec["minReplicaCount"], self.spec["maxReplicaCount"])
        now_s = time.monotonic()
        self.wants = [*(past for past in self.wants if now_s - past[0] < WAIT_S), (now_s, want)]
        count = len(self.fleet.replicas)
        if want > count:
            self.fleet.add(want - count)
        elif max(past for _, past in self.wants) < count:
            assert self.fleet.remove(self.fleet.replicas[-1]) == 0
            time.sleep(HEALTH_CHECK_S)
        self.note()

    def note(self) -> None:
        self.watcher.scrape({f"prod-fenhe-{replica.port}": replica.port for replica in self.fleet.replicas})
        self.history.append(len(self.fleet.replicas))


def test_load_scales_up_and_down_without_a_failure(tmp_path: Path) -> None:
    sets = {**LEAST, "autoscaling.kind": "keda", "autoscaling.prometheusUrl": "http://p:9090"}
    sets |= {"autoscaling.runningRequests": "12", "autoscaling.maxReplicas": "3"}
    (scaled,) = of_kind(render(sets=sets), "ScaledObject")
    locust = need_program("locust", "fleet", fix="make test-deploy installs it")
    with (
        fleet_of(1, tmp_path) as fleet,
        prometheus(tmp_path) as watcher,
        proxy("haproxy", fleet.ports, tmp_path) as url,
    ):
        scaler = Scaler(spec=scaled["spec"], fleet=fleet, watcher=watcher)
        scaler.note()
        command = [locust, "--locustfile", str(Path(__file__).parent / "fleet" / "locustfile.py"), "--headless"]
        command += ["--users", "36", "--spawn-rate", "12", "--run-time", f"{SECONDS_OF_LOAD}s", "--stop-timeout", "30"]
        log = tmp_path / "locust.log"
        with log.open("w") as out:
            users = subprocess.Popen([*command, "--host", url], stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path)
        end_s = time.monotonic() + SECONDS_OF_LOAD + 90
        while time.monotonic() < end_s and (users.poll() is None or len(fleet.replicas) > 1):
            scaler.look()
            time.sleep(1)
        assert users.wait(10) == 0, log.read_text()[-3000:]
        assert (scaler.history[0], max(scaler.history), scaler.history[-1]) == (1, 3, 1)
