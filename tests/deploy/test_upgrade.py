"""Upgrades, rollbacks and uninstalls: no field changes that Kubernetes refuses to change, nothing is left behind."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import LEAST, NAMESPACE, Objects, name_of, of_kind, render, values_files, workloads
from tests.generated import assert_up_to_date

FILE = Path(__file__).with_name("immutable.json")
"""As it was released: a difference breaks `helm upgrade` and `helm rollback` for everybody who has that release."""

CHANGES: dict[str, dict[str, str]] = {
    "image": {"image.tag": "0.2.0-full"},
    "replicas": {"replicas": "7"},
    "settings": {"settings.engine.max_running": "8"},
    "resources": {"resources.requests.cpu": "8"},
    "drain": {"drain.graceSeconds": "120"},
    "scaler": {"autoscaling.kind": "keda", "autoscaling.prometheusUrl": "http://p:9090"},
    "keys": {"keys.allowNone": "false", "keys.secretName": "keys"},
    "students": {
        "students": '[{"default": true}, {"folder": "/models/a"}]',
        "models.kind": "emptyDir",
        "resources.limits.memory": "4Gi",
    },
    "cache": {"valkey.enabled": "true", "valkey.passwordSecret.name": "valkey"},
    "monitor": {"monitoring.kind": "serviceMonitor"},
    "labels of pods": {"podLabels.team": "a"},
}


def immutable(objects: Objects) -> dict[str, Any]:
    """What the API server refuses to change in an object, by its name."""
    return {name_of(one): dict(_fields(one)) for one in objects if dict(_fields(one))}


def _fields(one: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    spec = one.get("spec", {})
    names = {
        "Deployment": ("selector",),
        "StatefulSet": ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"),
        "Service": ("clusterIP",),
        "PersistentVolumeClaim": ("accessModes", "storageClassName"),
    }.get(one["kind"], ())
    for name in names:
        if name in spec:
            yield name, spec[name]


def test_no_immutable_field_differs_from_the_release() -> None:
    found = {file.stem: immutable(render(file)) for file in values_files()}
    assert_up_to_date(FILE, json.dumps(found, indent=1) + "\n")


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_values_upgrades_and_rolls_back(change: str) -> None:
    before, after = render(sets=LEAST), render(sets={**LEAST, **CHANGES[change]})
    assert before != after
    old, new = immutable(before), immutable(after)
    assert {name: new.get(name) for name in old} == old
    assert {name_of(one) for one in before} - {name_of(one) for one in after} <= {"Pod prod-fenhe-test"}


def test_selectors_have_nothing_that_a_release_changes() -> None:
    for one in workloads(render(sets=LEAST)):
        assert set(one["spec"]["selector"]["matchLabels"]) == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
        }


@pytest.mark.parametrize("file", values_files(), ids=lambda file: file.stem)
def test_uninstall_leaves_only_claims(file: Path) -> None:
    for one in render(file):
        assert one["metadata"]["namespace"] == NAMESPACE, name_of(one)
        annotations = one["metadata"].get("annotations", {})
        assert ("helm.sh/resource-policy" in annotations) == (one["kind"] == "PersistentVolumeClaim")
        assert annotations.get("helm.sh/hook", "test") == "test"


def test_claim_for_models_is_kept() -> None:
    (claim,) = of_kind(
        render(sets={**LEAST, "models.kind": "claim", "models.accessMode": "ReadWriteMany"}), "PersistentVolumeClaim"
    )
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
