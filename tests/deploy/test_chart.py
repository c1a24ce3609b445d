"""Every values file of the chart rendered and held against the rules; manifests that break one are found."""

import copy
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import LEAST, Objects, of_kind, render, render_notes, settings_file, values_files, workloads
from tests.deploy.programs import CHART, helm
from tests.deploy.rules import find_problems

KUBERNETES = ("1.31.0", "1.37.0")
EVERYTHING = next(file for file in values_files() if file.stem == "everything")


@pytest.mark.parametrize("kube", KUBERNETES)
@pytest.mark.parametrize("file", values_files(), ids=lambda file: file.stem)
def test_what_is_rendered_keeps_the_rules(file: Path, kube: str) -> None:
    objects = render(file, kube=kube)
    assert workloads(objects)
    assert find_problems(objects) == []


def test_least_values_suffice() -> None:
    assert find_problems(render(sets=LEAST)) == []


def test_shortest_values_file_has_a_dozen_lines() -> None:
    (least,) = [file for file in values_files() if file.stem == "least"]
    assert len(least.read_text().splitlines()) < 12


@pytest.mark.parametrize("file", values_files(), ids=lambda file: file.stem)
def test_notes_tell_the_next_commands(file: Path) -> None:
    notes = render_notes(file)
    (entry,) = re.findall(r"rollout status (\S+/\S+)", notes)
    names = [f"{one['kind'].lower()}/{one['metadata']['name']}" for one in workloads(render(file))]
    assert entry in names
    assert "port-forward service/" in notes
    assert ("helm --namespace llm test prod" in notes) == bool(of_kind(render(file), "Pod"))


def test_chart_passes_helms_own_linter() -> None:
    command = [helm(), "lint", "--strict", str(CHART), "--values", str(EVERYTHING)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


Break = Callable[[Any], object]


def workload(objects: Objects) -> Any:
    return next(one for one in workloads(objects) if one["metadata"]["name"] == "prod-fenhe")


def pod(objects: Objects) -> Any:
    return workload(objects)["spec"]["template"]["spec"]


def fenhe(objects: Objects) -> Any:
    return pod(objects)["containers"][0]


def volume(objects: Objects, name: str) -> Any:
    return next(one for one in pod(objects)["volumes"] if one["name"] == name)


def first(objects: Objects, kind: str) -> Any:
    return of_kind(objects, kind)[0]["spec"]


def with_variable(objects: Objects, name: str) -> None:
    fenhe(objects)["env"].append({"name": name, "value": "1"})


def with_second_scaler(objects: Any) -> None:
    scaler = copy.deepcopy(of_kind(objects, "ScaledObject")[0])
    scaler["kind"] = "HorizontalPodAutoscaler"
    scaler["spec"] = {"scaleTargetRef": scaler["spec"]["scaleTargetRef"], "minReplicas": 1, "maxReplicas": 2}
    objects.append(scaler)


def with_setting(objects: Objects, line: str) -> None:
    (found,) = [one for one in of_kind(objects, "ConfigMap") if "fenhe.toml" in one["data"]]
    found["data"]["fenhe.toml"] = line


def trigger(objects: Objects) -> Any:
    return first(objects, "ScaledObject")["triggers"][0]["metadata"]


BROKEN: dict[str, tuple[Break, str]] = {
    "selector": (lambda o: workload(o)["spec"]["selector"]["matchLabels"].update(a="b"), "not select its own pods"),
    "service selector": (lambda o: first(o, "Service")["selector"].update(a="b"), "selects no pod"),
    "two services": (lambda o: o.append(copy.deepcopy(of_kind(o, "Service")[0])), "2 objects are Service"),
    "service port": (lambda o: first(o, "Service")["ports"][0].update(targetPort="web"), "the port web"),
    "probe port": (lambda o: fenhe(o)["readinessProbe"]["httpGet"].update(port="web"), "the port web"),
    "probe path": (lambda o: fenhe(o)["livenessProbe"]["httpGet"].update(path="/healthz"), "asks /healthz"),
    "no start probe": (lambda o: fenhe(o).pop("startupProbe"), "its startupProbe asks None"),
    "monitor port": (lambda o: first(o, "ServiceMonitor")["endpoints"][0].update(port="metrics"), "port metrics"),
    "monitor": (lambda o: first(o, "ServiceMonitor")["selector"]["matchLabels"].update(a="b"), "finds 0 Services"),
    "ingress": (
        lambda o: first(o, "Ingress")["rules"][0]["http"]["paths"][0]["backend"]["service"].update(name="x"),
        "leads to x:http",
    ),
    "route": (lambda o: first(o, "HTTPRoute")["rules"][0]["backendRefs"][0].update(port=81), ":81, which is not there"),
    "account": (lambda o: pod(o).update(serviceAccountName="other"), "ServiceAccount other"),
    "token": (lambda o: pod(o).pop("automountServiceAccountToken"), "gets a token"),
    "root": (lambda o: pod(o)["securityContext"].update(runAsNonRoot=False), "may run as root"),
    "capabilities": (lambda o: fenhe(o)["securityContext"].pop("capabilities"), "keeps capabilities"),
    "writable root": (lambda o: fenhe(o)["securityContext"].pop("readOnlyRootFilesystem"), "can be written"),
    "nowhere to write": (lambda o: fenhe(o)["volumeMounts"].pop(1), "nowhere to write"),
    "mount in mount": (
        lambda o: fenhe(o)["volumeMounts"][0].update(mountPath="/etc/fenhe"),
        "mounted inside /etc/fenhe",
    ),
    "volume": (lambda o: pod(o)["volumes"].pop(), "but mounted are"),
    "secret": (lambda o: volume(o, "keys")["secret"].update(secretName=""), "a Secret without a name"),
    "config map": (lambda o: volume(o, "settings")["configMap"].update(name="x"), "ConfigMap x"),
    "image": (lambda o: fenhe(o).update(image="localhost:5000/fenhe"), "is not pinned"),
    "latest": (lambda o: fenhe(o).update(image="localhost/fenhe:latest"), "is not pinned"),
    "requests": (lambda o: fenhe(o)["resources"]["requests"].pop("cpu"), "requests no cpu"),
    "limit": (lambda o: fenhe(o)["resources"].pop("limits"), "has no limit"),
    "request above limit": (lambda o: fenhe(o)["resources"]["requests"].update(memory="4Gi"), "more memory than"),
    "variable": (lambda o: with_variable(o, "FENHE_ENGINE__MAX_RUNING"), "reads no variable FENHE_ENGINE__MAX_RUNING"),
    "variable twice": (lambda o: with_variable(o, "FENHE_CONFIG"), "FENHE_CONFIG is set 2 times"),
    "setting": (lambda o: with_setting(o, "[engine]\nmax_runing = 2\n"), "did you mean engine.max_running"),
    "grace": (lambda o: pod(o).update(terminationGracePeriodSeconds=60), "is killed after 60 s"),
    "grace of the server": (lambda o: with_setting(o, "grace_s = 300\n"), "is killed after 75 s"),
    "no preStop": (lambda o: fenhe(o).pop("lifecycle"), "no preStop"),
    "target": (lambda o: first(o, "ScaledObject")["scaleTargetRef"].update(name="x"), "scales Deployment x"),
    "bounds": (lambda o: first(o, "ScaledObject").update(minReplicaCount=11), "from 11 to 10"),
    "both scalers": (with_second_scaler, "is scaled by 2 scalers"),
    "scaled and fixed": (lambda o: workload(o)["spec"].update(replicas=3), "both say how many"),
    "metric": (
        lambda o: trigger(o).update(query=trigger(o)["query"].replace("queued", "queud")),
        "no metric fenhe_queud",
    ),
    "other pods": (lambda o: trigger(o).update(query="sum(fenhe_queued_tokens)"), "asks about other pods"),
    "budget": (lambda o: first(o, "PodDisruptionBudget").update(maxUnavailable=0), "from being drained"),
    "policy": (lambda o: o.remove(of_kind(o, "NetworkPolicy")[0]), "has no NetworkPolicy"),
    "long name": (lambda o: of_kind(o, "Service")[0]["metadata"].update(name="x" * 64), "more than 63"),
}


@pytest.fixture(scope="module")
def everything() -> Objects:
    return render(EVERYTHING)


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_a_rule_is_found(case: str, everything: Objects) -> None:
    objects = copy.deepcopy(list(everything))
    breaks, expected = BROKEN[case]
    breaks(objects)
    assert any(expected in problem for problem in find_problems(objects)), find_problems(objects)


def test_other_settings_replace_the_pods_and_other_keys_do_not() -> None:
    def checksum(**sets: str) -> str:
        (one,) = workloads(render(sets={**LEAST, **sets}))
        found: str = one["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        return found

    assert checksum() == checksum(replicas="5")
    assert checksum() != checksum(**{"settings.engine.max_running": "5"})


def test_replicas_of_the_default_student_measure_nothing() -> None:
    def engine(**sets: str) -> dict[str, object]:
        table = tomllib.loads(settings_file(render(sets={**LEAST, **sets}), "prod-fenhe"))
        found: dict[str, object] = table["engine"]
        return found

    assert (engine()["precision"], engine()["head"]) == ("w8a8-native", "cheap")
    assert engine(**{"settings.engine.precision": "auto"})["precision"] == "auto"
    assert "precision" not in engine(students='[{"folder": "/opt/student"}]')


def test_remote_student_arrives_as_it_was_given() -> None:
    paths = '[{"name": "small", "model": "b"}, {"name": "full", "model": "a"}]'
    remote = (
        f'{{"urls": ["http://a/v1"], "paths": {paths}, "keySecret": {{"name": "k"}}, "keeps": {{"small.fact": 0.9}}, '
    )
    remote += '"costs": {"small": 0.1, "full": 1}}'
    sets = {**LEAST, "students": f'[{{"name": "big", "engine": "remote", "remote": {remote}}}]'}
    objects = render(sets={**sets, "networkPolicy.enabled": "false"})
    (student,) = tomllib.loads(settings_file(objects, "prod-fenhe"))["student"]
    assert list(student["remote"]["paths"].items()) == [("small", "b"), ("full", "a")]
    assert student["remote"]["keeps"] == {"small.fact": 0.9}
    (variable,) = [one for one in fenhe(objects)["env"] if one["name"] == student["remote"]["key_env"][0]]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "k", "key": "key"}
    assert find_problems(objects) == []


def test_settings_arrive_as_they_were_given() -> None:
    sets = {
        **LEAST,
        "settings.engine.kv_bytes": "500000001",
        "settings.router.fast": "0.75",
        "settings.cors.origins": '["https://page.example"]',
        "settings.claude_model": 'a "quoted" <name> & more',
    }
    text = settings_file(render(sets=sets), "prod-fenhe")
    table = tomllib.loads(text)
    assert table["engine"]["kv_bytes"] == 500_000_001
    assert table["router"]["fast"] == 0.75
    assert table["cors"]["origins"] == ["https://page.example"]
    assert table["claude_model"] == 'a "quoted" <name> & more'
