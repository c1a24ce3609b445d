"""Layers that train with rounded numbers, held against what the builder writes and what ONNX Runtime computes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from engines.onnx.sessions import open_session
from models.distill.network.decoder import DecoderLayer, Trunk
from models.distill.network.quantised import (
    QUANTISED_PRECISIONS,
    RotatedInt8Layer,
    fake_int8_blocks,
    fake_int8_columns,
    fake_int8_rows,
    quantised,
)
from models.errors import ConfigError
from models.graphs.decoder_graph import write_stage
from models.graphs.linear import RowInt8Linear
from models.graphs.onnx_graph import GraphWriter, TensorSpec, WeightsFile
from models.graphs.precisions import PRECISIONS
from models.graphs.quantise import quantise_blocks_int8, quantise_columns
from models.graphs.rotate import RotatedSource, rotation
from models.rope import inverse_frequencies
from models.sources.source import ModelSource, open_source
from tests.conftest import TinySource

Matrix = npt.NDArray[np.float32]
Fake = Callable[[Tensor], Tensor]
LAYER = "model.layers.0."


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def awkward_matrix(shape: tuple[int, int]) -> Tensor:
    """Rows of very different size, of zeros, of one sign, and with values that tie between two steps."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    matrix[1] *= 1000
    matrix[2] = 0
    matrix[3] = torch.arange(shape[1]) * 0.5 - 7.5
    matrix[4] = matrix[4].abs()
    matrix[5] = -matrix[5].abs() - 0.1
    return matrix


def read_columns(weight: Matrix) -> Matrix:
    columns = quantise_columns(weight)
    return np.asarray(columns.values.T.astype(np.float32) * columns.scales[:, None])


def read_int8_blocks(weight: Matrix) -> Matrix:
    blocks = quantise_blocks_int8(weight, 32)
    values = (blocks.values.astype(np.float32) - 128) * blocks.scales[..., None]
    return np.asarray(values.reshape(len(weight), -1)[:, : weight.shape[1]])


@pytest.mark.parametrize("num_inputs", [96, 80, 33])
@pytest.mark.parametrize(
    ("fake", "read"),
    [
        (fake_int8_columns, read_columns),
        (fake_int8_blocks, read_int8_blocks),
    ],
)
def test_fake_weights_equal_the_graphs_to_the_bit(
    fake: Fake, read: Callable[[Matrix], Matrix], num_inputs: int
) -> None:
    weight = awkward_matrix((9, num_inputs)).requires_grad_()
    assert np.array_equal(fake(weight).detach().numpy(), read(weight.detach().numpy()))


def test_fake_rows_equal_the_graphs_to_the_bit(tmp_path: Path) -> None:
    values = awkward_matrix((9, 96))
    weights = WeightsFile(tmp_path / "weights.bin")
    graph = GraphWriter(weights)
    prepared = RowInt8Linear().prepare(graph, "values")
    graph.named_node("Identity", [prepared.value], ["integers"])
    graph.named_node("Identity", [str(prepared.row_scale)], ["scale"])
    rows = TensorSpec(name="values", kind=TensorProto.FLOAT, dimensions=("rows", 96))
    outputs = [
        TensorSpec(name="integers", kind=TensorProto.UINT8, dimensions=("rows", 96)),
        TensorSpec(name="scale", kind=TensorProto.FLOAT, dimensions=("rows", 1)),
    ]
    graph.save(tmp_path / "rows.onnx", [rows], outputs)
    weights.close()
    integers, scale = run_graph(tmp_path / "rows.onnx", {"values": values.numpy()})
    expected = (integers.astype(np.float32) - 128) * np.float32(1 / 127) * scale
    assert np.array_equal(fake_int8_rows(values).numpy(), expected)


@pytest.mark.parametrize("fake", [fake_int8_columns, fake_int8_blocks, fake_int8_rows])
def test_gradient_passes_as_if_nothing_were_rounded(fake: Fake) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    slopes = torch.arange(256.0).reshape(4, 64)
    torch.autograd.backward((fake(weight) * slopes).sum())
    assert weight.grad is not None
    assert torch.equal(weight.grad, slopes)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_rotated_tensors_are_those_of_the_rotated_source(tiny_source: TinySource, family: str) -> None:
    source = open_source(tiny_source(family))
    layer = Trunk(source).copy_of(0)
    view, expected = RotatedInt8Layer(layer), RotatedSource(source)
    for name, value in layer.tensors():
        rotated = expected.read(LAYER + name)
        np.testing.assert_allclose(view.rotated(name).detach().numpy(), rotated, rtol=1e-4, atol=1e-5, err_msg=name)
        assert rotated.shape == tuple(value.shape)


def test_rotated_layer_without_rounding_is_the_plain_layer(
    tiny_source: TinySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fake_int8_columns", "fake_int8_rows"):
        monkeypatch.setattr(f"models.distill.network.quantised.{name}", lambda values: values)
    layer = Trunk(open_source(tiny_source("qwen3"))).copy_of(1)
    hidden = torch.randn(2, 5, 64)
    view = quantised(layer, "w8a8")
    torch.testing.assert_close(view(hidden), layer(hidden), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(view.attention_maps(hidden), layer.attention_maps(hidden), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "w8a8"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_layer_computes_what_its_graph_computes(
    tmp_path: Path, tiny_source: TinySource, family: str, precision: str
) -> None:
    source = open_source(tiny_source(family))
    layer = Trunk(source).copy_of(0)
    hidden = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(2))
    turn = torch.from_numpy(rotation(64)) if PRECISIONS[precision].is_rotated else torch.eye(64)
    graph_source = RotatedSource(source) if PRECISIONS[precision].is_rotated else source
    output = run_layer_graph(tmp_path, graph_source, precision, (hidden @ turn).numpy())
    with torch.no_grad():
        plain, rounded = layer(hidden), quantised(layer, precision)(hidden)
    difference = (rounded - torch.from_numpy(output) @ turn.T).norm()
    # 1e-5 of what rounding costs, or a tenth of it where one value that ties falls on the other side.
    assert difference < 0.2 * (rounded - plain).norm()


def run_layer_graph(folder: Path, source: ModelSource, precision: str, hidden: Matrix) -> Matrix:
    """Layer 0 of the source on one sequence, as the builder writes it for ONNX Runtime."""
    architecture, length = source.architecture, hidden.shape[1]
    weights = WeightsFile(folder / "weights.bin")
    graph = GraphWriter(weights)
    inputs, outputs = write_stage(graph, PRECISIONS[precision].writer, source, layers=range(1), final_norm=None)
    graph.save(folder / "layer.onnx", inputs, outputs)
    weights.close()
    angles = np.arange(8)[:, None] * inverse_frequencies(architecture)
    cache = np.zeros((1, architecture.num_kv_heads, 8, architecture.head_dim), np.float32)
    feeds = {
        "hidden": hidden,
        "last_positions": np.array([length - 1], np.int32),
        "total_length": np.array(length, np.int32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "past_key_0": cache,
        "past_value_0": cache.copy(),
    }
    output: Matrix = run_graph(folder / "layer.onnx", feeds)[0]
    return output


def run_graph(file: Path, feeds: dict[str, npt.NDArray[np.generic]]) -> list[Matrix]:
    outputs: list[Matrix] = open_session(file, 1, None).run(None, feeds)
    return outputs


@pytest.mark.parametrize("precision", QUANTISED_PRECISIONS)
def test_training_a_view_trains_the_plain_layer(tiny_source: TinySource, precision: str) -> None:
    layer = Trunk(open_source(tiny_source("qwen2"))).copy_of(0)
    view = quantised(layer, precision)
    assert view.state_dict().keys() == layer.state_dict().keys()
    before = {name: value.clone() for name, value in layer.tensors()}
    torch.autograd.backward(view(torch.randn(2, 4, 64)).square().mean())
    assert all(parameter.grad is not None for parameter in layer.parameters())
    torch.optim.SGD(view.parameters(), lr=0.1).step()
    moved = {name for name, value in layer.tensors() if not torch.equal(value, before[name])}
    assert moved == before.keys()


def test_unknown_precision_is_refused(tiny_source: TinySource) -> None:
    layer = Trunk(open_source(tiny_source("llama"))).copy_of(0)
    with pytest.raises(ConfigError, match=r"fp32.*supports int8, w8a8"):
        quantised(layer, "fp32")


def test_training_rounded_beats_rounding_after_training(tiny_source: TinySource) -> None:
    trunk = Trunk(open_source(tiny_source("llama")))
    hidden = torch.randn(8, 8, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        target = trunk.layer(0)(hidden)
    afterwards, aware = trunk.copy_of(0), trunk.copy_of(0)
    fit(afterwards, afterwards, hidden, target)
    fit(aware, quantised(aware, "int8"), hidden, target)
    assert loss_as_built(aware, hidden, target) < 0.9 * loss_as_built(afterwards, hidden, target)


def fit(layer: DecoderLayer, view: DecoderLayer, hidden: Tensor, target: Tensor) -> None:
    """In steps far smaller than those of int8, which training must not walk past."""
    optimiser = torch.optim.Adam(layer.parameters(), lr=3e-5)
    for _ in range(100):
        optimiser.zero_grad()
        torch.autograd.backward((view(hidden) - target).square().mean())
        optimiser.step()


@torch.no_grad()
def loss_as_built(layer: DecoderLayer, hidden: Tensor, target: Tensor) -> float:
    """With every matrix rounded by the builder's own code."""
    tensors = {name: value.numpy() for name, value in layer.tensors()}
    rounded = {name: torch.from_numpy(read_int8_blocks(v) if v.ndim == 2 else v) for name, v in tensors.items()}
    built = DecoderLayer(layer.architecture, layer._rope, rounded)
    return float((built(hidden) - target).square().mean())
