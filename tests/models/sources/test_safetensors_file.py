import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.errors import WeightsError
from models.sources.safetensors_file import SafetensorsFile


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_reads_floats_as_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_file({"a": tensor, "b": torch.ones(2, dtype=dtype)}, tmp_path / "w.safetensors")
    read = SafetensorsFile(tmp_path / "w.safetensors").read("a")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, tensor.to(torch.float32).numpy())


def test_safetensors_refuses_other_numbers_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="tensor a is stored as F8_E4M3"):
        SafetensorsFile(tmp_path / "w.safetensors").read("a")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_safetensors_reads_integers_where_they_are_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.tensor([[1, -2], [127, -128]], dtype=dtype), "b": torch.zeros(2)}, tmp_path / "w.safetensors")
    file = SafetensorsFile(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(file.read_integers("a"), [[1, -2], [127, -128]])
    with pytest.raises(WeightsError, match="tensor a is stored as I"):
        file.read("a")
    with pytest.raises(WeightsError, match="tensor b is stored as F32; only I8, I16, I32 can be read"):
        file.read_integers("b")


def test_safetensors_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for num_bytes in range(len(whole)):
        cut.write_bytes(whole[:num_bytes])
        with pytest.raises(WeightsError, match=r"cut\.safetensors"):
            SafetensorsFile(cut)


def test_safetensors_cut_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    """Nothing is mapped, or the process would end."""
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(3000), "b": torch.ones(3)}, file)
    opened = SafetensorsFile(file)
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(WeightsError, match=r"w\.safetensors was cut short while it was read"):
        [opened.read(name) for name in opened.tensors]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "I16", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
    ],
)
def test_safetensors_refuses_a_header_that_lies(tmp_path: Path, entry: dict[str, object]) -> None:
    header = json.dumps({"a": entry}).encode()
    file = tmp_path / "w.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        SafetensorsFile(file)
