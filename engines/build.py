"""From a student folder and settings to a running engine."""

from pathlib import Path

from engines.config import EngineConfig
from engines.cores import usable_cores
from engines.drawing import Chooser, PlainChooser
from engines.loop.module_engine import ModuleEngine
from engines.native import library_path
from engines.native.choosing import NativeChooser
from engines.onnx.plan import PrecisionPlan
from engines.onnx.precision_choice import choose_plan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from models.errors import ConfigError
from models.student.folder import Student


def build_engine(student: Student, config: EngineConfig) -> ModuleEngine:
    """An engine that has yet to be started.

    Raises: ConfigError for settings the student or this machine cannot meet.
    """
    plan = _plan(student, config)
    runner = _runner(student, config, plan)
    return ModuleEngine(
        student,
        runner,
        config,
        capacity_tokens=capacity_tokens(student, config),
        variant=plan.describe(),
        kv_precision=plan.kv_precision,
        head=plan.head,
        chooser=_chooser(config),
    )


def build_runner(student: Student, config: EngineConfig) -> OnnxRunner:
    """A runner alone, nothing loaded: for benchmarks and tests of raw forward passes."""
    return _runner(student, config, _plan(student, config))


def capacity_tokens(student: Student, config: EngineConfig) -> int:
    """The longest sequence, prompt and answer together.

    Raises: ConfigError when more is configured than the student supports.
    """
    longest = student.manifest.architecture.max_context_tokens
    if config.max_context_tokens is not None and config.max_context_tokens > longest:
        raise ConfigError(
            f"max_context_tokens is {config.max_context_tokens}, but the student supports {longest} positions at most"
        )
    return config.max_context_tokens or longest


def _plan(student: Student, config: EngineConfig) -> PrecisionPlan:
    problems = config.problems()
    if problems:
        raise ConfigError(*problems)
    return choose_plan(student, config, _num_threads(config), _library(config))


def _library(config: EngineConfig) -> Path | None:
    return None if config.native_folder is None else library_path(config.native_folder)


def _chooser(config: EngineConfig) -> Chooser:
    library = _library(config)
    return PlainChooser() if library is None else NativeChooser(library)


def _num_threads(config: EngineConfig) -> int:
    return config.num_threads or usable_cores()


def _runner(student: Student, config: EngineConfig, plan: PrecisionPlan) -> OnnxRunner:
    limits = RunnerLimits(
        num_slots=config.max_running,
        capacity_tokens=capacity_tokens(student, config),
        num_threads=_num_threads(config),
        library=_library(config),
    )
    return OnnxRunner(student, plan, limits)
