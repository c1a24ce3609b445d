"""What a build needs to know of a GGUF file's own blocks: whether they can be kept, and the embedding table of them."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from models.errors import ConfigError
from models.graphs.precisions import DEFAULT_PRECISIONS, PRECISIONS
from models.sources.gguf_blocks import BLOCK, FLOAT_KINDS, Bytes, Kind
from models.sources.source import BlockSource, ModelSource
from models.student.row_table import can_keep, write_table

logger = logging.getLogger(__name__)

EMBEDDING = "model.embed_tokens.weight"
ROWS_AT_ONCE = 4096
KEEPS_BLOCKS = tuple(name for name, precision in PRECISIONS.items() if precision.keeps_blocks)


def serving_precisions(model: ModelSource, *, has_native: bool, has_widths: bool, has_head: bool) -> tuple[str, ...]:
    """What to build where nobody says: the file's own blocks, where they can be kept and this machine can run them."""
    keeps = isinstance(model, BlockSource) and _find_problem(model, has_widths=has_widths) is None
    return KEEPS_BLOCKS if keeps and has_native and not has_head and not _rounded(model) else DEFAULT_PRECISIONS


def check_blocks(model: ModelSource, precisions: Sequence[str], *, has_widths: bool) -> None:
    """Whether those of `precisions` that keep blocks can be built. Says which matrices leave the grid of their file.

    Raises: ConfigError that says why not.
    """
    named = [name for name in precisions if name in KEEPS_BLOCKS]
    if not named:
        _warn_of_other_grids(model, precisions)
        return
    problem = _find_problem(model, has_widths=has_widths)
    if problem is not None:
        raise ConfigError(f"--precision {named[0]}: {problem}; build w8a8-native instead")
    if rounded := _rounded(model):
        counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(rounded.items()))
        logger.warning("matrices rounded to 8 bits source=%s kinds=%r", model.files[0], counts)


def _warn_of_other_grids(model: ModelSource, precisions: Sequence[str]) -> None:
    """Blocks that native operators do not multiply are rounded again, from what they say in fp32."""
    rounded = _rounded(model) if isinstance(model, BlockSource) else Counter()
    floats = {kind.name for kind in FLOAT_KINDS}
    counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(rounded.items()) if kind not in floats)
    if counts:
        logger.warning(
            "matrices rounded again source=%s kinds=%r precisions=%s: no operator multiplies their blocks as they are",
            model.files[0],
            counts,
            ",".join(precisions),
        )


def _find_problem(model: ModelSource, *, has_widths: bool) -> str | None:
    if has_widths:
        return "students with widths have matrices of their own, which are in no file's blocks"
    if not isinstance(model, BlockSource):
        return f"it keeps the blocks of a GGUF file, and {model.files[0].parent} has none"
    for name, depth in _depths(model).items():
        if depth % BLOCK:
            return f"{name} has rows of {depth}, which blocks of {BLOCK} do not fill"
    return None


def _depths(model: ModelSource) -> dict[str, int]:
    """How wide the rows of each matrix are that is multiplied."""
    shapes = {name: model.shape(name) for name in sorted(model.tensor_names())}
    return {name: shape[1] for name, shape in shapes.items() if len(shape) == 2 and _is_multiplied(model, name)}


def _rounded(model: ModelSource) -> Counter[str]:
    """How many matrices of which kind are in no blocks that can be kept."""
    assert isinstance(model, BlockSource)
    matrices = [model.matrix(name) for name in _depths(model)]
    return Counter(matrix.kind_name for matrix in matrices if not matrix.is_exact)


def _is_multiplied(model: ModelSource, name: str) -> bool:
    return name != EMBEDDING or model.architecture.has_tied_head


def write_embedding_rows(model: ModelSource, file: Path) -> None:
    """The embedding table's rows as the GGUF file has them; of a kind that is not read again, as halves."""
    assert isinstance(model, BlockSource)
    matrix = model.matrix(EMBEDDING)
    kind, pieces = (matrix.kind, _stored(model)) if can_keep(matrix.kind) else (Kind.F16, _halves(model))
    write_table(file, kind, matrix.shape, pieces)


def _stored(model: BlockSource) -> Iterator[Bytes]:
    matrix = model.matrix(EMBEDDING)
    for first in range(0, matrix.shape[0], ROWS_AT_ONCE):
        yield matrix.stored(first, min(first + ROWS_AT_ONCE, matrix.shape[0]))


def _halves(model: ModelSource) -> Iterator[Bytes]:
    values = model.read(EMBEDDING).astype(np.float16)
    yield values.view(np.uint8).reshape(len(values), -1)
