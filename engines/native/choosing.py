"""Chooses tokens with the compiled library: the same tokens as with numpy, in a fraction of the time.

Called with the interpreter held: a call takes tens of microseconds, and getting the interpreter back may take longer.
"""

import ctypes
from pathlib import Path

import numpy as np

from engines.drawing import Row, draw
from engines.ranking import Likeliest, likeliest
from engines.sequence import SamplingParams

_POINTER, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class NativeChooser:
    """`Chooser` over a library that passed its trial. Where rounding could decide, numpy does."""

    def __init__(self, library: Path) -> None:
        functions = ctypes.PyDLL(str(library))
        self._scratch_bytes = functions.fenhe_scratch_bytes
        self._scratch_bytes.argtypes, self._scratch_bytes.restype = [_INT], _INT
        self._draw = functions.fenhe_draw
        self._draw.argtypes = [_POINTER, _INT, _DOUBLE, _DOUBLE, _DOUBLE, _INT, _DOUBLE, _POINTER]
        self._draw.restype = _INT
        self._likeliest = functions.fenhe_likeliest
        self._likeliest.argtypes, self._likeliest.restype = [_POINTER, _INT, _INT, *[_POINTER] * 3], _INT
        self._scratch = np.empty(0, np.uint8)
        self._num_logits = -1
        self.num_unsure = 0
        """Draws and searches that were left to numpy."""

    def draw(self, logits: Row, params: SamplingParams, point: float) -> int:
        row, scratch = _plain(logits), self._scratch_for(len(logits))
        token_id: int = self._draw(
            _address(row),
            len(row),
            params.temperature,
            params.top_p,
            params.min_p,
            params.top_k or 0,
            point,
            scratch,
        )
        if token_id >= 0:
            return token_id
        self.num_unsure += 1
        return draw(logits, params, point)

    def likeliest(self, logits: Row, count: int) -> Likeliest:
        row, scratch = _plain(logits), self._scratch_for(len(logits))
        ids, log_total = np.empty(count, np.int64), np.empty(1, np.float64)
        done = self._likeliest(_address(row), len(row), count, _address(ids), _address(log_total), scratch)
        if done >= 0:
            return Likeliest(ids.tolist(), float(log_total[0]))
        self.num_unsure += 1
        return likeliest(logits, count)

    def _scratch_for(self, num_logits: int) -> int:
        """Its address."""
        if num_logits > self._num_logits:
            self._scratch = np.empty(self._scratch_bytes(num_logits), np.uint8)
            self._num_logits = num_logits
        return _address(self._scratch)


def _plain(logits: Row) -> Row:
    return np.ascontiguousarray(logits, np.float32)


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
