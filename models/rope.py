"""Rotary frequencies of an architecture, scaling included. Shared by the graph builder and the reference."""

import math

import numpy as np
import numpy.typing as npt

from models.architecture import Architecture, RopeScaling


def inverse_frequencies(architecture: Architecture) -> npt.NDArray[np.float32]:
    """The angle, in radians per position, of every rotated pair.

    Shapes: [head_dim / 2]; pair i is made of the channels i and i + head_dim / 2.
    """
    plain = plain_frequencies(architecture.head_dim, architecture.rope_theta)
    divisors = frequency_divisors(architecture.head_dim, architecture.rope_theta, architecture.rope_scaling)
    return (plain / divisors).astype(np.float32)


def plain_frequencies(head_dim: int, theta: float) -> npt.NDArray[np.float64]:
    """Frequencies without scaling. Shapes: [head_dim / 2]."""
    frequencies: npt.NDArray[np.float64] = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return frequencies


def frequency_divisors(head_dim: int, theta: float, scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """What scaling divides each plain frequency by; the `rope_freqs` tensor of a GGUF holds the same numbers.

    Shapes: [head_dim / 2].
    Source: Llama 3.1 reference code, `apply_scaling`: long waves stretched, short ones kept, a ramp between.
    """
    if scaling.kind != "llama3":
        return np.full(head_dim // 2, scaling.factor if scaling.kind == "linear" else 1.0)
    num_turns = scaling.original_max_positions * plain_frequencies(head_dim, theta) / (2 * math.pi)
    band = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((num_turns - scaling.low_freq_factor) / band, 0.0, 1.0)
    divisors: npt.NDArray[np.float64] = 1.0 / ((1.0 - kept) / scaling.factor + kept)
    return divisors
