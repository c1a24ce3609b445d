"""Which paths, heads and precisions are measured, and what they are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.config import EngineConfig
from engines.evaluation.speeds import NUM_ROUNDS
from engines.native import library_path
from models.errors import ConfigError
from models.graphs.precisions import PRECISIONS, REMOVED, unknown_precisions
from models.student.manifest import HeadKind, Manifest

PRECISE_FIRST = ("fp32", "int8", "gguf-native", "w8a8", "w8a8-native")
"""The order in which a reference is looked for: the least rounded weights and activations first."""
CALIBRATION_PRECISION = "gguf-native"
"""Of a student built from a 4-bit GGUF file it is what many serve models at without a second thought: what that keeps
shows how strict the figures are."""


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
    """Raises: ConfigError for one that the student lacks, that was removed, or when none can run here."""
    built = [variant.name for variant in manifest.variants]
    _check_removed("--precision", config.precisions or ())
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
    """Raises: ConfigError for one that the student lacks, that was removed, or when none can run here."""
    built = [variant.name for variant in manifest.variants]
    if config.reference is not None:
        _check_removed("--reference", [config.reference])
        if config.reference not in built:
            raise ConfigError(f"--reference: the student has no {config.reference}, only {', '.join(built)}")
        return config.reference
    ranked = sorted((name for name in built if _can_run(name, config)), key=_rank)
    if not ranked:
        raise ConfigError(f"no precision of student {manifest.name!r} can run here: {', '.join(built)}")
    return ranked[0]


def check_calibration(manifest: Manifest, other: Manifest, config: EvalConfig) -> None:
    """Whether the full path of `other` can be scored on the texts of a student.

    Raises: ConfigError where it cannot run here, or is of a model with another vocabulary.
    """
    if CALIBRATION_PRECISION not in [variant.name for variant in other.variants]:
        raise ConfigError(
            f"--calibration: student {other.name!r} has no {CALIBRATION_PRECISION}; build one from a 4-bit GGUF file "
            f"of the model: `fenhe build FILE.gguf --precision {CALIBRATION_PRECISION}`"
        )
    if not _can_run(CALIBRATION_PRECISION, config):
        raise ConfigError(f"--calibration: {CALIBRATION_PRECISION} cannot run here: install a C compiler")
    ours, theirs = manifest.architecture.vocab_size, other.architecture.vocab_size
    if (ours, manifest.full_path.name) != (theirs, other.full_path.name):
        raise ConfigError(
            f"--calibration: {other.name!r} has {theirs} tokens and the full path {other.full_path.name!r}, "
            f"{manifest.name!r} {ours} and {manifest.full_path.name!r}; take a plain build of the same model"
        )


def _check_removed(option: str, names: Sequence[str]) -> None:
    removed = [name for name in names if name in REMOVED]
    if removed:
        raise ConfigError(f"{option}: {unknown_precisions(removed)}")


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
