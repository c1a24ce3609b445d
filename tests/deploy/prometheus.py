"""A Prometheus and an Alertmanager of one's own, which scrape replicas and evaluate the shipped rules."""

import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.fleet.fleet import free_ports, status_of
from tests.deploy.programs import need_program
from tests.deploy.promql import RULES

DEBIAN = "make test-deploy DEBIAN=1 installs it"
NAMESPACE = "llm"
SCRAPE_S = 1


@dataclass(slots=True, kw_only=True, frozen=True)
class Prometheus:
    url: str
    alertmanager: str
    targets: Path

    def scrape(self, replicas: Mapping[str, int]) -> None:
        """Ports by the names of pods. Read anew by Prometheus when the file changes."""
        groups = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": NAMESPACE, "pod": pod}}
            for pod, port in replicas.items()
        ]
        scratch = self.targets.with_suffix(".part")
        scratch.write_text(json.dumps(groups))
        scratch.rename(self.targets)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series and their values now. Raises: AssertionError for an expression that Prometheus refuses."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            reply = urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=10)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        with reply:
            data = json.load(reply)["data"]
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        result: list[dict[str, Any]] = data["result"]
        return result

    def value(self, expression: str) -> float:
        """Of one series; 0 where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    def firing(self) -> set[str]:
        """Names of the alerts that have reached the Alertmanager and are active."""
        with urllib.request.urlopen(f"{self.alertmanager}/api/v2/alerts?active=true", timeout=10) as reply:
            return {alert["labels"]["alertname"] for alert in json.load(reply)}


def until(condition: Callable[[], object], limit_s: float) -> bool:
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.2)
    return True


def is_ready(url: str) -> bool:
    return status_of(f"{url}/-/ready") == 200


def in_haste(rules: str) -> str:
    """The rules with seconds in place of minutes and hours: what differs is only how long a fault must last."""
    rules = re.sub(r"for: \d+\w", "for: 1s", rules)
    rules = re.sub(r"interval: \d+s", "interval: 1s", rules)
    return re.sub(r"\[(\d+)(m|h|d)\]", "[45s]", rules)


@contextlib.contextmanager
def prometheus(folder: Path, rules: str | None = None) -> Iterator[Prometheus]:
    """`rules` in place of the shipped ones."""
    programs = [need_program(name, fix=DEBIAN) for name in ("prometheus", "prometheus-alertmanager")]
    port, alert_port = free_ports(2)
    (folder / "rules.yaml").write_text(rules if rules is not None else RULES.read_text())
    targets = folder / "targets.json"
    targets.write_text("[]")
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yaml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alert_port}"]}]}]},
        "scrape_configs": [
            {"job_name": "fenhe", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}]}
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "alertmanager.yaml").write_text(
        yaml.safe_dump({"route": {"receiver": "nobody", "group_wait": "0s"}, "receivers": [{"name": "nobody"}]})
    )
    commands = [
        [programs[0], f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb"],
        [programs[1], f"--config.file={folder}/alertmanager.yaml", f"--storage.path={folder}/alerts"],
    ]
    commands[0] += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    commands[1] += [f"--web.listen-address=127.0.0.1:{alert_port}", "--cluster.listen-address=", "--log.level=warn"]
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"{number}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
        one = Prometheus(url=f"http://127.0.0.1:{port}", alertmanager=f"http://127.0.0.1:{alert_port}", targets=targets)
        for number, url in enumerate((one.url, one.alertmanager)):
            assert until(partial(is_ready, url), 30), (folder / f"{number}.log").read_text()
        yield one
