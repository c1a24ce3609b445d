"""A remote student: its paths and what is known of them. Tokenizer and weights are its upstream's."""

import hashlib
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from engines.remote.config import RemoteConfig
from models.architecture import Architecture
from models.errors import BadRequest
from models.student.manifest import FORMAT_VERSION, Exit, Manifest, Module, Retention, StudentPath

VARIANT = "remote"
END = "end"
NUM_PARTS = 100
"""Costs are told in hundredths of the full path's."""


class NoTokenizer:
    """Stands where a tokenizer is expected, and refuses whatever is asked of it."""

    def __init__(self, student: str) -> None:
        self._student = student

    def __getattr__(self, name: str) -> NoReturn:
        """Raises: BadRequest."""
        raise BadRequest(
            f"the student `{self._student}` runs elsewhere, and this server does not have its tokenizer; ask the "
            "server that it runs on",
            param="model",
        )


class RemoteStudent:
    """`models` has the upstream's model of every path."""

    folder = Path()
    is_verified = True

    def __init__(self, name: str, config: RemoteConfig) -> None:
        self.name = name
        self.config = config
        self.models = config.models(name)
        self.manifest = manifest_of(name, config)
        self.tokenizer: Any = NoTokenizer(name)
        self.created = int(time.time())


def manifest_of(name: str, config: RemoteConfig) -> Manifest:
    """A manifest that says of a remote student what routing needs: its paths, as if they were cuts of one model whose
    layers are hundredths of the full path's cost, and what each keeps on the tasks that the settings name.
    """
    models = config.models(name)
    shares = [(path, _num_parts(config.costs.get(path, 1.0))) for path in models]
    full = shares[-1][0]
    shares[-1] = (full, NUM_PARTS)
    modules = _modules(sorted({share for _, share in shares}))
    exits = [Exit(name=f"{END}-{module.name}", after=module.name) for module in modules[:-1]]
    exits.append(Exit(name=END, after=modules[-1].name))
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        source=", ".join(models.values()),
        source_sha256=_digest(config, models),
        licence="",
        architecture=_architecture(config),
        modules=modules,
        exits=tuple(exits),
        paths=tuple(_path(path, share, modules, exits) for path, share in reversed(shares)),
        tasks=_tasks(config, models),
        depth_rules=(),
        variants=(),
        retention=tuple(_retention(config)),
    )


def _num_parts(cost: float) -> int:
    return max(1, round(cost * NUM_PARTS))


def _modules(ends: list[int]) -> tuple[Module, ...]:
    """One for every step from one cost to the next."""
    steps = pairwise([0, *ends])
    return tuple(
        Module(name=f"part-{index}", first_layer=first, num_layers=end - first)
        for index, (first, end) in enumerate(steps, start=1)
    )


def _path(name: str, share: int, modules: tuple[Module, ...], exits: list[Exit]) -> StudentPath:
    taken = tuple(module.name for module in modules if module.first_layer < share)
    return StudentPath(name=name, modules=taken, exit=exits[len(taken) - 1].name)


def _tasks(config: RemoteConfig, models: Mapping[str, str]) -> dict[str, str]:
    """The cheapest path that has a figure for a task; all other tasks take the full path."""
    by_cost = sorted(models, key=lambda path: config.costs.get(path, 1.0), reverse=True)
    named = [(path, place.rpartition(".")) for path in by_cost for place in config.keeps]
    return {task: path for path, (owner, _, task) in named if owner == path}


def _retention(config: RemoteConfig) -> list[Retention]:
    return [
        Retention(path=path, task=task, variant=VARIANT, score=kept, low=kept, high=kept)
        for (path, _, task), kept in ((place.rpartition("."), kept) for place, kept in config.keeps.items())
    ]


def _architecture(config: RemoteConfig) -> Architecture:
    """The smallest there can be: only the number of its layers counts."""
    return Architecture(
        family="llama",
        num_layers=NUM_PARTS,
        hidden_size=1,
        intermediate_size=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=1,
        vocab_size=0,
        max_context_tokens=config.max_context_tokens,
        norm_eps=0.0,
        rope_theta=1.0,
    )


def _digest(config: RemoteConfig, models: Mapping[str, str]) -> str:
    return hashlib.sha256("\0".join([*config.urls, *models, *models.values()]).encode()).hexdigest()
