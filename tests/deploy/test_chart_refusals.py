"""Values that cannot work: rendering fails, and says which value it was and what to do."""

import pytest

from tests.deploy.chart import LEAST, RenderError, render_text
from tests.deploy.programs import helm

REMOTE = '[{"engine": "remote", "name": "big"}]'
GPU = '[{"engine": "vllm", "folder": "/models/x"}]'

REFUSED: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "no image": ({"image.repository": '""'}, ("image.repository", "make image", "kind load docker-image")),
    "no keys": ({"keys.allowNone": "false"}, ("keys.secretName", "kubectl create secret", "keys.allowNone=true")),
    "unknown value": ({"replica": "2"}, ("replica",)),
    "unknown value within": ({"autoscaling.max": "2"}, ("autoscaling", "max")),
    "unknown setting": ({"settings.engine.max_runing": "2"}, ("max_runing",)),
    "setting of the wrong kind": ({"settings.engine.max_running": "many"}, ("max_running",)),
    "setting of the chart's": ({"settings.port": "9000"}, ("port",)),
    "both scalers": ({"autoscaling.kind": '["hpa", "keda"]'}, ("autoscaling",)),
    "no replicas": ({"replicas": "0"}, ("replicas",)),
    "short grace": ({"drain.terminationGracePeriodSeconds": "30"}, ("drain.terminationGracePeriodSeconds=30", "75")),
    "student without source": ({"students": '[{"name": "big"}]'}, ("students[0]", "no source")),
    "remote student without address": ({"students": REMOTE}, ("students[0]", "remote.urls")),
    "student with two sources": ({"students": '[{"default": true, "folder": "/x"}]'}, ("default and folder",)),
    "no student": ({"students": "[]"}, ("students",)),
    "remote student behind a closed policy": (
        {"students": REMOTE.replace('"remote"', '"remote", "remote": {"urls": ["http://a/v1"]}')},
        ("students[0]", "networkPolicy.egressTo"),
    ),
    "vLLM without a GPU": ({"students": GPU}, ("gpu.count",)),
    "default student in slim": ({"image.tag": "0.1.0-slim"}, ("students[0]", ":slim", "models.prepare")),
    "Valkey without password": ({"valkey.enabled": "true"}, ("valkey.passwordSecret.name", "kubectl create secret")),
    "two caches": (
        {"valkey.enabled": "true", "valkey.passwordSecret.name": "a", "externalCache.urlSecret.name": "b"},
        ("valkey.enabled", "externalCache.urlSecret.name"),
    ),
    "secret that is no name": ({"keys.secretName": "My Keys"}, ("secretName",)),
    "KEDA without Prometheus": ({"autoscaling.kind": "keda"}, ("autoscaling.prometheusUrl",)),
    "KEDA on CPU": (
        {"autoscaling.kind": "keda", "autoscaling.prometheusUrl": "http://p:9090", "autoscaling.cpuPercent": "80"},
        ("autoscaling.cpuPercent",),
    ),
    "bounds": (
        {"autoscaling.kind": "hpa", "autoscaling.maxReplicas": "1", "autoscaling.minReplicas": "2"},
        ("maxReplicas=1",),
    ),
    "ingress without host": ({"ingress.enabled": "true"}, ("ingress.host",)),
    "route without gateway": ({"httpRoute.enabled": "true"}, ("httpRoute.parentRefs",)),
    "claims of a Deployment": ({"models.kind": "perReplica"}, ("models.kind=perReplica", "StatefulSet")),
    "one node's claim": ({"models.kind": "claim"}, ("models.accessMode", "ReadWriteMany")),
    "models without image": ({"models.kind": "oci"}, ("models.reference",)),
    "nowhere to prepare": ({"models.prepare": '[["fenhe"]]'}, ("models.prepare", "emptyDir")),
    "too little memory": ({"settings.engine.kv_bytes": "4294967296"}, ("resources.limits.memory", "kv_bytes")),
    "no quantity": ({"resources.limits.memory": "lots"}, ("memory",)),
    "groups without entry": ({"groups": '{"a": {}, "b": {}}'}, ("entryGroup", "a, b")),
    "group with an unknown value": ({"groups": '{"a": {"replica": 1}}', "entryGroup": "a"}, ("replica",)),
    "group that cannot work": (
        {"groups": '{"a": {"drain": {"terminationGracePeriodSeconds": 1}}}', "entryGroup": "a"},
        ("prod-fenhe-a", "terminationGracePeriodSeconds"),
    ),
}


def complaint(sets: dict[str, str], program: str) -> str:
    with pytest.raises(RenderError) as raised:
        render_text(sets={**LEAST, **sets}, program=program)
    return str(raised.value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_by_name(case: str) -> None:
    sets, expected = REFUSED[case]
    said = complaint(sets, helm())
    assert [part for part in expected if part not in said] == [], said


@pytest.mark.deploy
@pytest.mark.parametrize("case", REFUSED)
def test_helm_3_refuses_the_same(case: str) -> None:
    sets, expected = REFUSED[case]
    said = complaint(sets, helm(3))
    assert [part for part in expected if part not in said] == [], said
