"""Which run a checkpoint or an exits file belongs to, and what may change when that run is resumed.

A run is its data, its teachers, its exits, its seed and what it minimises. Where its files are is no part of it, and
neither are the learning rate and the size of batches: those are changed when a run diverged or ran out of memory.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from models.distill.config import BranchSettings, DistillConfig, ExitConfig
from models.distill.data.examples import Example
from models.distill.width_settings import LegSettings
from models.student.manifest import Module

# `task`, `text` and `labels` decide the examples, `modules` and `exits` the layout, which are digested themselves.
KNOWN_OTHERWISE = ("task", "text", "labels", "modules", "exits", "teacher", "teachers", "data")
ELSEWHERE = ("out", "work", "name", "precisions", "device", "branches", "learning_rate", "widths")
CHANGEABLE_TRAINING = (
    "batch_tokens",
    "accumulate",
    "clip_norm",
    "weight_decay",
    "divergence_factor",
    "checkpoint_s",
    "log_steps",
)
DIGEST_CHARS = 16


def run_key(
    config: DistillConfig,
    examples: Sequence[Example],
    modules: Sequence[Module],
    exits: Sequence[ExitConfig],
    teachers: Sequence[str],
) -> str:
    """A digest of every part of the run, as JSON. `teachers` are their SHA-256, the student's own first."""
    parts = plain(config)
    for name in (*KNOWN_OTHERWISE, *ELSEWHERE):
        parts.pop(name)
    for name in CHANGEABLE_TRAINING:
        parts["training"].pop(name)
    parts |= {"teacher": teachers[0], "further teachers": list(teachers[1:]), "data": content_of(examples)}
    parts |= {"cut": list(modules), "exits": [asdict(exit) for exit in exits]}
    return key_of(parts)


def branches_key(key: str, settings: BranchSettings) -> str:
    """The key of the branches' own training. How they are merged afterwards does not matter to it."""
    return _encoded(_parts(key) | {"branches": _digest(settings.epochs)})


def exits_key(key: str, settings: BranchSettings | None) -> str:
    """The key of the exits that come out: branches change them, not the run that they start from."""
    merged = None if settings is None else (settings.epochs, settings.merge)
    return _encoded(_parts(key) | {"branches": _digest(merged)})


def differences(key: str, other: str) -> str:
    """The parts in which two runs differ, by name; empty for the same run."""
    one, two = _parts(key), _parts(other)
    if not one or not two:
        return "" if key == other else "settings or data"
    return ", ".join(sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name)))


def changeable(config: DistillConfig) -> dict[str, Any]:
    """What may change when a run is resumed and is worth a line in the log, by its name in the config."""
    values = plain(config)
    found = {f"training.{name}": values["training"][name] for name in CHANGEABLE_TRAINING}
    found |= {f"learning_rate.{name}": value for name, value in values["learning_rate"].items()}
    return found | {name: values[name] for name in ("teacher", "teachers", "data", "branches")}


def plain(config: DistillConfig | LegSettings) -> dict[str, Any]:
    """Settings as JSON has them."""
    found: dict[str, Any] = msgspec.to_builtins(asdict(config))
    return found


def content_of(examples: Sequence[Example]) -> str:
    """SHA-256 of what the examples say, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.task, example.num_prompt_tokens, example.token_ids)).encode())
    return digest.hexdigest()


def key_of(parts: Mapping[str, Any]) -> str:
    """A digest of every part, as JSON, so that two runs can say in what they differ."""
    return _encoded({name: _digest(part) for name, part in parts.items()})


def _digest(part: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(part, order="deterministic")).hexdigest()[:DIGEST_CHARS]


def _encoded(parts: dict[str, str]) -> str:
    return msgspec.json.encode(parts, order="deterministic").decode()


def _parts(key: str) -> dict[str, str]:
    """Empty for a key that this version did not make."""
    try:
        return msgspec.json.decode(key, type=dict[str, str])
    except msgspec.DecodeError:
        return {}
