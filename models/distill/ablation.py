"""What each choice is worth: the same short run many times, each time with one thing changed."""

import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from models.distill.config import DistillConfig, config_from
from models.distill.distiller import Distiller, OpenAnswerer, Report
from models.distill.run.heldout import HeldOutFigure
from models.errors import ConfigError

BASE = "base"
HELD_OUT_ROWS = 40
"""Per task: enough to distinguish differences that matter from noise."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Variation:
    """A name and the settings that differ from the base, as tables of the config."""

    name: str
    settings: Mapping[str, Any]


@dataclass(slots=True, kw_only=True, frozen=True)
class AblationRow:
    """One variation's held-out figures: means over exits and tasks, and each."""

    name: str
    tokens: int
    seconds: float
    kl: float
    agreement: float
    perplexity_ratio: float
    figures: tuple[HeldOutFigure, ...]


def read_variations(file: Path) -> list[Variation]:
    """A TOML file of tables `[NAME]`, each holding what differs from the base run.

    Raises: ConfigError that names the file.
    """
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not values or not all(isinstance(value, dict) for value in values.values()):
        raise ConfigError(f"{file}: give a table [NAME] for every variation, with the settings that differ")
    return [Variation(name=name, settings=value) for name, value in values.items()]


def ablate(
    config: DistillConfig,
    variations: list[Variation],
    *,
    answerer: OpenAnswerer | None,
    report: Report,
    show: Callable[[AblationRow], None],
) -> list[AblationRow]:
    """Run the base and every variation from the beginning; they share teacher caches that fit several.

    Raises: ConfigError before anything runs, for a variation with invalid settings or without held-out rows.
    """
    plain: dict[str, Any] = msgspec.to_builtins(asdict(config))
    configs = {BASE: config}
    for variation in variations:
        configs[variation.name] = config_from(_merged(plain, variation.settings), f"variation {variation.name!r}")
    if unmeasured := [name for name, changed in configs.items() if not changed.text.heldout_share]:
        raise ConfigError(f"runs are compared on held-out rows: text.heldout_share is 0 in {', '.join(unmeasured)}")
    rows = []
    for name, changed in configs.items():
        row = _run(name, replace(changed, work=str(config.work_folder.path)), answerer, report)
        show(row)
        rows.append(row)
    return rows


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge into tables; everything else replaces. What is None in the base is absent from TOML."""
    merged = {key: value for key, value in base.items() if value is not None}
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return {key: _without_none(value) for key, value in merged.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(inner) for inner in value]
    return value


def _run(name: str, config: DistillConfig, answerer: OpenAnswerer | None, report: Report) -> AblationRow:
    distiller = Distiller(config=config, answerer=answerer, report=report)
    distiller.prepared()
    distiller.reading()
    started_s = time.monotonic()
    progress = distiller.train(keep=False)
    seconds = time.monotonic() - started_s
    figures = distiller.evaluate(HELD_OUT_ROWS)
    return AblationRow(
        name=name,
        tokens=progress.num_tokens,
        seconds=seconds,
        kl=_mean([figure.kl for figure in figures]),
        agreement=_mean([figure.agreement for figure in figures]),
        perplexity_ratio=_mean([figure.perplexity_ratio for figure in figures]),
        figures=tuple(figures),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(rows: list[AblationRow]) -> str:
    """As Markdown, with the difference to the base run's KL."""
    lines = ["| run | KL, nats | against base | agreement | perplexity ratio | seconds |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.name} | {row.kl:.3f} | {row.kl - rows[0].kl:+.3f} | {row.agreement:.3f} "
        f"| {row.perplexity_ratio:.3f} | {row.seconds:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)
