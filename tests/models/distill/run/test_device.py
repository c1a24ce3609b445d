"""The device that a run asks for, and the float type that is fast on it."""

import pytest
import torch

from models.distill.run import device as device_module
from models.distill.run.device import choose_device, choose_float_type
from models.errors import ConfigError

CPU = torch.device("cpu")


def test_a_named_device_is_taken_and_one_that_is_not_there_is_named() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="device = 'cuda:77' cannot be used here"):
        choose_device("cuda:77")


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert choose_device("auto").type == expected


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 avx512_bf16", torch.bfloat16), ("avx2", torch.float32), ("", torch.float32)]
)
def test_bf16_is_chosen_where_the_cpu_has_it(
    flags: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "_cpu_flags", lambda: flags)
    assert choose_float_type(CPU) is expected
