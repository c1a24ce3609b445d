"""Students that are built when they are served first: at the precision that the engine will choose, and no other."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from engines.config import EngineConfig
from engines.native import library_path
from engines.onnx.precision_choice import ADAPTIVE, AUTO
from models.building.blocks import serving_precisions
from models.building.cached_student import StudentCache, check_place
from models.graphs.precisions import DEFAULT_PRECISIONS, PRECISIONS
from models.sources.source import ModelSource
from server.settings.config import EngineKind

VLLM_PRECISIONS = ("fp32",)
"""What vLLM's weights are read from."""


def default_precisions(engine: EngineConfig) -> Sequence[str]:
    """What the default student must be built in to be served with these settings: it has widths, and so no blocks."""
    if engine.precision not in (AUTO, ADAPTIVE):
        return (engine.precision,)
    names = [name for name in DEFAULT_PRECISIONS if not PRECISIONS[name].needs_native or _has_native(engine)]
    return names[:1] if engine.precision == AUTO else names


def find_built(cache: StudentCache, path: Path, engine: EngineConfig, kind: EngineKind) -> Path:
    """The folder of the student of a model, built now if need be.

    Raises: ConfigError, WeightsError as `StudentCache.find` does.
    """
    check_place(path)  # before operators are compiled
    if kind == "vllm":
        return cache.find(path, "vllm", lambda model: VLLM_PRECISIONS)
    if engine.precision not in (AUTO, ADAPTIVE):
        return cache.find(path, engine.precision, lambda model: (engine.precision,))
    has_native = _has_native(engine)
    wanted = f"{engine.precision} {'native' if has_native else 'stock'}"
    is_auto = engine.precision == AUTO
    return cache.find(path, wanted, partial(precisions_to_build, has_native=has_native, is_auto=is_auto))


def _has_native(engine: EngineConfig) -> bool:
    return engine.native_folder is not None and library_path(engine.native_folder) is not None


def precisions_to_build(model: ModelSource, *, has_native: bool, is_auto: bool) -> Sequence[str]:
    """What a model is built in: the one precision that will be served, or all that adaptive may choose from."""
    names = serving_precisions(model, has_native=has_native, has_widths=False, has_head=False)
    return [name for name in names if has_native or not PRECISIONS[name].needs_native][: 1 if is_auto else None]
