"""ONNX Runtime sessions and what they are bound to. The only place that creates sessions."""

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from engines.onnx.int8_kv import Int8Kv
from engines.onnx.slot_kv import SlotKv
from models.errors import WeightsError
from models.graphs.decoder_graph import KEPT_BY_WIDTH, KEPT_ROWS
from models.graphs.onnx_graph import PACKED_WEIGHTS
from models.graphs.widths import ROWS_BY_WIDTH

MAX_CACHED_BINDINGS = 64

Float = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int32]
StageKv = SlotKv | Int8Kv


class KeptRows(NamedTuple):
    """Which tokens of a pass the output of a stage has, and how many of them are at least as wide as each width.

    Shapes: places [kept], at least one, ascending, counted over batch and length; by_width [1 + widths].
    """

    places: Counts
    by_width: Counts


def open_session(graph: Path, num_threads: int, library: Path | None) -> ort.InferenceSession:
    """Load a graph with its weights on the CPU; `library` holds fenhe's own operators.

    Raises: WeightsError when ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Every session has its own pool: workers of the last one must not spin on a core that the next one needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI, sums of products of an unsigned and a signed byte saturate at 16 bits; products of unsigned ones are
    # exact. Where there is VNNI this changes nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if library is not None:
        options.register_custom_ops_library(str(library))
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise WeightsError(f"{graph} cannot be loaded: {error}; build the student again with `fenhe build`") from error


class Tables:
    """Rotary tables shared by all stages. Shapes: cos, sin [positions, head_dim / 2]."""

    def __init__(self, inverse_frequencies: Float, num_positions: int) -> None:
        angles = np.arange(num_positions, dtype=np.float64)[:, None] * inverse_frequencies.astype(np.float64)
        self.cos = np.cos(angles).astype(np.float32)
        self.sin = np.sin(angles).astype(np.float32)


class StageSession:
    """One module or exit at one precision, over the KV of its slots.

    Bindings are kept: in a steady batch the same rows run step after step, and binding sixty buffers again would cost
    as much as a small layer. Passes over all slots share one, in which only what lives for a step is bound anew.
    """

    def __init__(
        self, session: ort.InferenceSession, kv: StageKv | None, tables: Tables, weights: Bytes | None = None
    ) -> None:
        """Shapes: weights [bytes], packed matrices of a graph that reads them."""
        self._session = session
        self._weights = weights
        self._kv = kv
        self._tables = tables
        self._inputs = frozenset(value.name for value in session.get_inputs())
        self._bindings: OrderedDict[tuple[int, ...], ort.IOBinding] = OrderedDict()
        self._bindings_over_slots: dict[tuple[int, int], ort.IOBinding] = {}
        self._every_place: Counts = np.zeros(0, np.int32)

    def run(
        self,
        hidden: Float,
        output: Float,
        *,
        slot: int,
        last_positions: npt.NDArray[np.int32],
        total_length: npt.NDArray[np.int32],
        rows_by_width: npt.NDArray[np.int32],
        num_slots: int | None = None,
        kept: KeptRows | None = None,
    ) -> None:
        """Run the stage over rows in consecutive slots, the first in `slot`; `output` may be `hidden` itself.

        With `num_slots` the stage sees so many slots, and `last_positions` says which sequence lies in which
        (`engines/onnx/joint_pass.py`); for graphs of native operators alone. `kept` is for stages where `keeps_rows` is
        true; None keeps all.

        Shapes: hidden [batch, length, hidden_size], output the same or [kept, 1, hidden_size], last_positions [batch],
        total_length [], rows_by_width [1 + widths], which stages without widths do not read.
        """
        shared = {"last_positions": last_positions, "total_length": total_length, ROWS_BY_WIDTH: rows_by_width}
        if self.keeps_rows:
            places, by_width = kept or self._all_kept(hidden, rows_by_width)
            shared |= {KEPT_ROWS: places, KEPT_BY_WIDTH: by_width}
            output = output.reshape(len(places), 1, -1)
        if num_slots is None:
            binding = self._kept_binding(hidden, output, slot, shared)
        else:
            binding = self._binding_over_slots(slot, num_slots)
            self._bind_step(binding, hidden, output, shared)
        self._session.run_with_iobinding(binding)

    def _all_kept(self, hidden: Float, rows_by_width: Counts) -> KeptRows:
        num_rows, length = hidden.shape[:2]
        if num_rows * length > len(self._every_place):
            self._every_place = np.arange(2 * num_rows * length, dtype=np.int32)
            self.forget_bindings()
        by_width = rows_by_width if length == 1 else rows_by_width * np.int32(length)
        return KeptRows(places=self._every_place[: num_rows * length], by_width=by_width)

    def _kept_binding(
        self, hidden: Float, output: Float, slot: int, shared: dict[str, npt.NDArray[Any]]
    ) -> ort.IOBinding:
        key = (*hidden.shape, len(output), slot, *(array.ctypes.data for array in (hidden, output, *shared.values())))
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bound_to_slots(slot, len(hidden))
            self._bind_step(binding, hidden, output, shared)
            self._bindings[key] = binding
            if len(self._bindings) > MAX_CACHED_BINDINGS:
                self._bindings.popitem(last=False)
        else:
            self._bindings.move_to_end(key)
        return binding

    def _binding_over_slots(self, slot: int, num_slots: int) -> ort.IOBinding:
        """To what stays where it is; the arrays of the last step, which it still names, are gone."""
        key = slot, num_slots
        if key not in self._bindings_over_slots:
            self._bindings_over_slots[key] = self._bound_to_slots(*key)
        return self._bindings_over_slots[key]

    def forget_bindings(self) -> None:
        """Drop the kept bindings: their arrays are gone."""
        self._bindings.clear()

    @property
    def num_widths(self) -> int:
        """How many widths its rows can have, the whole one included; 1 for a graph without widths."""
        return next((value.shape[0] for value in self._session.get_inputs() if value.name == ROWS_BY_WIDTH), 1)

    @property
    def keeps_rows(self) -> bool:
        """Whether its output may have some of a pass's tokens alone."""
        return KEPT_ROWS in self._inputs

    def _bound_to_slots(self, slot: int, num_slots: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        _bind_weights(binding, self._weights)
        if self._kv is None:
            return binding
        for name, table in (("cos", self._tables.cos), ("sin", self._tables.sin)):
            if name in self._inputs:
                _bind_input(binding, name, table)
        for layer in range(self._kv.num_layers):
            for part, kind in enumerate(("key", "value")):
                rows = self._kv.rows(layer, part, slice(slot, slot + num_slots))
                _bind_input(binding, f"past_{kind}_{layer}", rows)
                _bind_output(binding, f"present_{kind}_{layer}", rows)
        return binding

    def _bind_step(
        self, binding: ort.IOBinding, hidden: Float, output: Float, shared: dict[str, npt.NDArray[Any]]
    ) -> None:
        _bind_input(binding, "hidden", hidden)
        _bind_output(binding, "output", output)
        for name, array in shared.items():
            if name in self._inputs:
                _bind_input(binding, name, array)


class HeadSession:
    """One of the shared heads at one precision."""

    def __init__(self, session: ort.InferenceSession, weights: Bytes | None = None) -> None:
        """Shapes: weights [bytes], packed matrices of a graph that reads them."""
        self._session = session
        self._weights = weights

    @property
    def sizes(self) -> tuple[int, int]:
        """What its graph says it reads and writes: the hidden size and the vocabulary."""
        return self._session.get_inputs()[0].shape[-1], self._session.get_outputs()[0].shape[-1]

    def run(self, normed: Float, logits: Float) -> None:
        """Shapes: normed [rows, hidden_size], logits [rows, vocab]."""
        binding = self._session.io_binding()
        _bind_input(binding, "normed", normed)
        _bind_output(binding, "logits", logits)
        _bind_weights(binding, self._weights)
        self._session.run_with_iobinding(binding)


def _bind_weights(binding: ort.IOBinding, weights: Bytes | None) -> None:
    if weights is not None:
        _bind_input(binding, PACKED_WEIGHTS, weights)


def _bind_input(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
