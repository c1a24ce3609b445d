"""What the server reads, serves and exports, as far as manifests, rules and dashboards rely on it."""

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from server.settings.fields import setting_names, variable_of
from server.settings.reading import NOT_SETTINGS, draft_config
from tests.deploy.programs import ROOT

PROBES = {"startupProbe": "/startup", "readinessProbe": "/readyz", "livenessProbe": "/health"}
END_S = 2.0
"""After the grace period the process ends within this."""


@cache
def variables() -> frozenset[str]:
    """The environment variables of ours that the server knows."""
    return frozenset({*map(variable_of, setting_names()), *NOT_SETTINGS})


@cache
def _surface() -> Mapping[str, Mapping[str, Mapping[str, object]]]:
    surface: Mapping[str, Mapping[str, Mapping[str, object]]]
    surface = json.loads((ROOT / "tests" / "public_surface.json").read_text(encoding="utf-8"))
    return surface


def addresses() -> frozenset[str]:
    """Everything that can be asked with GET."""
    return frozenset(route.removeprefix("GET ") for route in _surface()["routes"] if route.startswith("GET "))


@cache
def metrics() -> Mapping[str, frozenset[str]]:
    """The labels of every series of ours, by the names that queries use."""
    found: dict[str, frozenset[str]] = {}
    for name, family in _surface()["metrics"].items():
        labels = family["labels"]
        assert isinstance(labels, list)
        for series in _series_of(name, str(family["type"])):
            found[series] = frozenset(labels) | ({"le"} if series.endswith("_bucket") else set())
    return found


def _series_of(name: str, kind: str) -> list[str]:
    if kind == "histogram":
        return [f"{name}_bucket", f"{name}_sum", f"{name}_count"]
    return [f"{name}_total"] if kind == "counter" else [name]


@cache
def settings_problems(text: str) -> tuple[float, tuple[str, ...]]:
    """The grace period of a settings file in seconds, and what the server would say is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fenhe.toml"
        file.write_text(text, encoding="utf-8")
        config, problems = draft_config({}, {"HOME": folder}, file)
    return config.grace_s, tuple(problem.said for problem in problems)
