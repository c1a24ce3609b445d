"""Where a run computes, and in which float type."""

from pathlib import Path

import torch

from models.distill.config import AUTO
from models.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Raises: ConfigError for a device that is not there."""
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device = {name!r} cannot be used here: {error}") from error
    return torch.device(name)


def choose_float_type(device: torch.device) -> torch.dtype:
    """bf16 where it is fast: CPUs without instructions for it compute it more slowly than fp32."""
    return torch.bfloat16 if _has_fast_bf16(device) else torch.float32


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
