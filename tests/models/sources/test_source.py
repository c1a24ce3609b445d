import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.architecture import Architecture
from models.errors import ConfigError, WeightsError
from models.sources.source import check_complete, expected_shapes, open_source
from models.tokenizer import Tokenizer

ARCHITECTURE = Architecture(
    family="qwen3",
    num_layers=2,
    hidden_size=8,
    intermediate_size=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    vocab_size=10,
    max_context_tokens=16,
    norm_eps=1e-6,
    rope_theta=10_000.0,
    has_qkv_bias=True,
    has_qk_norm=True,
)


class ShapesOnly:
    """A source whose tensors have shapes and nothing else."""

    name = "shapes"
    licence = "unknown"
    sampling = None
    files = (Path("shapes.gguf"),)
    architecture = ARCHITECTURE

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def sha256(self) -> str:
        raise NotImplementedError

    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        raise NotImplementedError

    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError


def test_check_complete_accepts_exactly_what_the_architecture_needs() -> None:
    check_complete(ShapesOnly(expected_shapes(ARCHITECTURE)))


def test_check_complete_names_everything_wrong_at_once() -> None:
    shapes = expected_shapes(ARCHITECTURE)
    del shapes["model.layers.1.self_attn.k_norm.weight"]
    shapes["lm_head.weight"] = (8, 10)
    shapes["model.layers.2.mlp.up_proj.weight"] = (12, 8)
    with pytest.raises(WeightsError) as caught:
        check_complete(ShapesOnly(shapes))
    message = caught.value.message
    assert "missing tensors: model.layers.1.self_attn.k_norm.weight" in message
    assert "unknown tensors: model.layers.2.mlp.up_proj.weight" in message
    assert "misshapen tensors: lm_head.weight is [8, 10], not [10, 8]" in message


def test_check_complete_keeps_a_long_list_short() -> None:
    with pytest.raises(WeightsError, match=r"and \d+ more") as caught:
        check_complete(ShapesOnly({}))
    assert len(caught.value.message) < 1000


def test_expected_shapes_follow_the_architecture() -> None:
    shapes = expected_shapes(ARCHITECTURE)
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (24, 8)
    assert shapes["model.layers.1.self_attn.v_proj.bias"] == (12,)
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == (8, 24)
    assert shapes["model.layers.0.self_attn.q_norm.weight"] == (6,)
    assert "model.layers.0.self_attn.o_proj.bias" not in shapes
    assert len(shapes) == 3 + 2 * 14


@pytest.mark.parametrize(
    ("name", "words"),
    [("nothing.gguf", "does not exist"), ("model.bin", "neither a GGUF file nor")],
)
def test_open_source_refuses_other_things(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match=words):
        open_source(tmp_path / name)


def test_open_source_reads_both_formats_alike(tiny_source: Any, tiny_gguf: Any) -> None:
    folder = tiny_source("llama")
    ours, theirs = open_source(tiny_gguf(folder)), open_source(folder)
    assert ours.architecture == theirs.architecture
    assert ours.tensor_names() == theirs.tensor_names()
    for name in ours.tensor_names():
        np.testing.assert_array_equal(ours.read(name), theirs.read(name))


def test_reading_models_needs_no_torch(tiny_source: Any, tiny_gguf: Any) -> None:
    folder = tiny_source("llama")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from models.sources.source import check_complete, open_source\n"
        f"for path in ({str(folder)!r}, {str(tiny_gguf(folder))!r}):\n"
        "    source = open_source(Path(path)); check_complete(source); source.read('model.norm.weight')\n"
        "    print(source.tokenizer().vocab_size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["320", "320"]
