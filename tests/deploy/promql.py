"""Which series and labels an expression of PromQL names, for checks without Prometheus."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.programs import CHART
from tests.deploy.server_facts import metrics

RULES = CHART / "files" / "rules.yaml"
TARGET = frozenset({"namespace", "pod", "instance", "job"})
"""Labels that every scraped series gets."""

_SERIES = re.compile(r"\b((?:fenhe_|vllm:|process_|fenhe:)[a-zA-Z0-9_:]+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def recorded() -> frozenset[str]:
    return frozenset(rule["record"] for rule in rules() if "record" in rule)


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def series_problems(expression: str) -> Iterator[str]:
    """Series that nobody exports, and labels that they do not have."""
    known = metrics()
    found = list(_SERIES.findall(expression))
    if not found and not expression.startswith("vector("):
        yield f"no series of ours in {expression}"
    for name, matchers in found:
        if name in recorded() or name == "up":
            continue
        if name not in known:
            yield f"nobody exports {name}"
            continue
        for label in _MATCHER.findall(matchers):
            if label not in known[name] | TARGET:
                yield f"{name} has no label {label}"


def sections(page: Path) -> frozenset[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles)
