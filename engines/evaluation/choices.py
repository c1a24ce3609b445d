"""Which paths, heads and precisions are measured, and what they are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.config import EngineConfig
from engines.evaluation.speeds import NUM_ROUNDS
from engines.native import library_path
from models.errors import ConfigError
from models.graphs.precisions import PRECISIONS
from models.student.manifest import HeadKind, Manifest

PRECISE_FIRST = ("fp32", "int8", "w8a8", "w8a8-native", "int4")
"""The order in which a reference is looked for: the least rounded weights and activations first."""
CALIBRATION_PRECISION = "int4"
"""What many serve models at without a second thought: what it keeps shows how strict the figures are."""


@dataclass(slots=True, kw_only=True, frozen=True)
class EvalConfig:
    """What to measure. None: every path, every precision that can run here, the most precise one as the reference.

    Texts longer than `max_text_tokens` are cut. The full path writes answers to `num_own_prompts` prompts of every
    task, kept in `own_words_file`; every path writes its own to `num_answer_prompts` of those, kept in `answers_file`.
    """

    precisions: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    reference: str | None = None
    max_text_tokens: int = 1024
    seed: int = 0
    num_threads: int | None = None
    native_folder: Path | None = None
    num_speed_rounds: int = NUM_ROUNDS
    num_own_prompts: int = 100
    num_answer_prompts: int = 16
    own_words_file: Path | None = None
    answers_file: Path | None = None


def chosen_paths(manifest: Manifest, asked: Sequence[str] | None) -> tuple[str, ...]:
    """In the manifest's order, the full path always among them. Raises: ConfigError for one that it lacks."""
    known = [path.name for path in manifest.paths]
    unknown = sorted(set(asked or ()) - set(known))
    if unknown:
        raise ConfigError(f"--paths: student {manifest.name!r} has no {', '.join(unknown)}, only {', '.join(known)}")
    full = manifest.full_path.name
    return tuple(name for name in known if asked is None or name in asked or name == full)


def chosen_precisions(manifest: Manifest, config: EvalConfig) -> tuple[str, ...]:
    """Raises: ConfigError for one that the student lacks, or when none can run here."""
    built = [variant.name for variant in manifest.variants]
    unknown = sorted(set(config.precisions or ()) - set(built))
    if unknown:
        raise ConfigError(
            f"--precision: student {manifest.name!r} has no {', '.join(unknown)}, only {', '.join(built)}; "
            "build it with `fenhe build --precision`"
        )
    if config.precisions is not None:
        return tuple(dict.fromkeys(config.precisions))
    runnable = tuple(name for name in built if _can_run(name, config))
    if not runnable:
        raise ConfigError(f"no precision of student {manifest.name!r} can run here: {', '.join(built)}")
    return runnable


def chosen_reference(manifest: Manifest, config: EvalConfig) -> str:
    """Raises: ConfigError for one that the student lacks, or when none can run here."""
    built = [variant.name for variant in manifest.variants]
    if config.reference is not None:
        if config.reference not in built:
            raise ConfigError(f"--reference: the student has no {config.reference}, only {', '.join(built)}")
        return config.reference
    ranked = sorted((name for name in built if _can_run(name, config)), key=_rank)
    if not ranked:
        raise ConfigError(f"no precision of student {manifest.name!r} can run here: {', '.join(built)}")
    return ranked[0]


def calibration_precision(manifest: Manifest, config: EvalConfig, reference: str) -> str | None:
    """None where the student has no such precision, or is compared with that one."""
    built = {variant.name for variant in manifest.variants}
    is_possible = CALIBRATION_PRECISION in built and _can_run(CALIBRATION_PRECISION, config)
    return CALIBRATION_PRECISION if is_possible and reference != CALIBRATION_PRECISION else None


def engine_config(
    config: EvalConfig, precision: str, heads: Sequence[HeadKind], *, max_context_tokens: int, max_running: int
) -> EngineConfig:
    """For everything that is run in an evaluation. Heads are measured whether or not they would be chosen here."""
    return EngineConfig(
        max_running=max_running,
        max_context_tokens=max_context_tokens,
        precision=precision,
        head="cheap" if "cheap" in heads else "exact",
        num_threads=config.num_threads,
        native_folder=config.native_folder,
    )


def _rank(precision: str) -> int:
    return PRECISE_FIRST.index(precision) if precision in PRECISE_FIRST else len(PRECISE_FIRST)


def _can_run(precision: str, config: EvalConfig) -> bool:
    if precision not in PRECISIONS:
        return False
    if not PRECISIONS[precision].needs_native:
        return True
    return config.native_folder is not None and library_path(config.native_folder) is not None
