"""How far a build is: weights read of all that will be, and which part of the model they are of."""

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from models.architecture import Architecture
from models.sources.derived_source import DerivedSource
from models.sources.gguf_blocks import Blocks, Bytes
from models.sources.source import BlockSource, ModelSource, StoredBlocks

Show = Callable[[int, str], None]
"""Gets the percent that is done and the part of the model that is being built, whenever there is one more percent."""

WHOLE = 100
ALMOST = 99
"""The most that is shown before the end: a student with exits or widths reads more than is counted."""
STEP_PERCENT = 10
"""How often lines are written where there is no terminal."""
EMBEDDING = "model.embed_tokens.weight"

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class Progress:
    """Counts weights, from several threads."""

    def __init__(self, architecture: Architecture, total: int, show: Show) -> None:
        self._num_layers = architecture.num_layers
        self._total = max(total, 1)
        self._show = show
        self._lock = threading.Lock()
        self._num_done, self._percent = 0, -1
        self._is_past_tables = False

    def add(self, name: str, count: int) -> None:
        with self._lock:
            self._num_done += count
            percent = min(ALMOST, 100 * self._num_done // self._total)
            is_news, self._percent = percent > self._percent, max(percent, self._percent)
            part = self._part_of(name)
        if is_news:
            self._show(percent, part)

    def _part_of(self, name: str) -> str:
        """A tied head is the embedding, read once more after the layers."""
        found = _LAYER.match(name)
        if found is not None:
            self._is_past_tables = True
            return f"layer {int(found[1]) + 1} of {self._num_layers}"
        return "head" if self._is_past_tables else "embedding"


def num_reads(model: ModelSource, *, num_graphs: int, num_tables: int) -> int:
    """Weights that are read for graphs in so many precisions, and for so many tables of embeddings."""
    sizes = {name: prod(model.shape(name)) for name in model.tensor_names()}
    embedding = sizes.pop(EMBEDDING, 0)
    head = embedding if model.architecture.has_tied_head else 0
    return num_graphs * (sum(sizes.values()) + head) + num_tables * embedding


def watched(model: ModelSource, progress: Progress) -> ModelSource:
    """The same model, whose reading is counted."""
    if isinstance(model, BlockSource):
        return _WatchedBlocks(model, progress)
    return _Watched(model, progress)


class _Watched(DerivedSource):
    def __init__(self, base: ModelSource, progress: Progress) -> None:
        super().__init__(base, base.architecture)
        self._progress = progress

    def tensor_names(self) -> frozenset[str]:
        return self._base.tensor_names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        values = self._base.read(name)
        self._progress.add(name, values.size)
        return values


class _WatchedBlocks(_Watched):
    def matrix(self, name: str) -> StoredBlocks:
        base: Any = self._base
        return _WatchedMatrix(base.matrix(name), name, self._progress)


class _WatchedMatrix:
    def __init__(self, base: StoredBlocks, name: str, progress: Progress) -> None:
        self._base, self._name, self._progress = base, name, progress

    @property
    def shape(self) -> tuple[int, int]:
        return self._base.shape

    @property
    def kind(self) -> int:
        return self._base.kind

    @property
    def kind_name(self) -> str:
        return self._base.kind_name

    @property
    def is_exact(self) -> bool:
        return self._base.is_exact

    def read(self, first: int, end: int) -> Blocks:
        blocks = self._base.read(first, end)
        self._progress.add(self._name, blocks.values.size)
        return blocks

    def stored(self, first: int, end: int) -> Bytes:
        rows = self._base.stored(first, end)
        self._progress.add(self._name, len(rows) * self._base.shape[1])
        return rows


@contextlib.contextmanager
def shown_as_lines(report: Callable[[str], None], what: str) -> Iterator[Show]:
    """A line for every ten percent."""
    last = 0

    def show(percent: int, part: str) -> None:
        nonlocal last
        if percent >= last + STEP_PERCENT:
            last = percent - percent % STEP_PERCENT
            report(f"building {what}: {percent} %, {part}")

    yield show


@contextlib.contextmanager
def shown_as_bar(what: str) -> Iterator[Show]:
    """A bar on stderr, complete at the end."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=WHOLE, desc=f"building {what}", bar_format=form) as bar:

        def show(percent: int, part: str) -> None:
            bar.set_postfix_str(part, refresh=False)
            bar.update(percent - bar.n)

        yield show
        bar.update(WHOLE - bar.n)


def show_progress(report: Callable[[str], None], what: str) -> "contextlib.AbstractContextManager[Show]":
    """A bar on a terminal, lines elsewhere."""
    return shown_as_bar(what) if sys.stderr.isatty() else shown_as_lines(report, what)
