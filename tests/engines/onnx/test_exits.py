"""Trained exits through the runner and the engine, against plain torch and against themselves one at a time."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engines.build import build_engine
from engines.config import EngineConfig
from engines.contract import DecodeRow, StepInput
from engines.onnx.plan import PrecisionPlan
from engines.sequence import GenerationRequest, SamplingParams
from models.building.build import build_student
from models.building.exits import Exits, read_exits
from models.distill.network.decoder import DecoderLayer, Trunk
from models.sources.source import ModelSource, open_source
from models.student.folder import Student
from tests.engines.onnx.test_runner import CLOSENESS, IDS, TOLERANCE, Tape, chunk, cosine, never_joining
from tests.models.exit_files import PLAN, write_tiny_exits

Float = npt.NDArray[np.float32]

FAMILIES = [("llama", {}), ("qwen2", {"tie_word_embeddings": True}), ("qwen3", {})]
QUANTISED = [*(("llama", precision) for precision in sorted(CLOSENESS)), ("qwen2", "w8a8"), ("qwen2", "w8a8-native")]
PATHS = ("math", "fact", "riddle", "legal", "full")
PROMPTS = {"math": IDS[:7], "fact": IDS[2:11], "riddle": IDS[5:9], "legal": IDS[1:6], "full": IDS[3:13]}


class Built:
    """A tiny model, its exits, and a student of both."""

    def __init__(self, folder: Path, out: Path, precision: str) -> None:
        self.folder = folder
        self.source = open_source(folder)
        self.exits = read_exits(write_tiny_exits(out.with_suffix(".safetensors"), self.source))
        build_student(folder, out, exits=self.exits.file, precisions=(precision,))
        self.student = Student.open(out)
        self.precision = precision

    def tape(self, library: Path | None = None) -> Tape:
        return Tape(self.student, PrecisionPlan(many=self.precision), library)


@pytest.fixture
def build(tiny_source: Any, tmp_path: Path) -> Callable[..., Built]:
    def make(family: str = "llama", precision: str = "fp32", **config: Any) -> Built:
        return Built(tiny_source(family, **config), tmp_path / f"{family}-{precision}", precision)

    return make


@pytest.fixture
def library(request: pytest.FixtureRequest) -> Callable[[str], Path | None]:
    """The operators a precision needs; skips where they cannot be compiled."""
    return lambda precision: request.getfixturevalue("native_library") if precision.endswith("native") else None


@torch.inference_mode()
def expected_logits(source: ModelSource, exits: Exits, path: str, ids: Sequence[int]) -> Float:
    """Every position's logits on a path, in plain torch. Shapes: returns [T, V]."""
    trunk = Trunk(source)
    if path == "full":
        hidden = trunk.run(trunk.embed(torch.tensor([ids])), range(4))
        return trunk.logits(trunk.norm(hidden))[0].numpy()
    way = next(one for one in PLAN.paths if one.name == path)
    exit = next(one for one in PLAN.exits if one.name == way.exit)
    hidden = trunk.run(trunk.embed(torch.tensor([ids])), range(3 if "reasoning" in way.modules else 1))
    if exit.has_map:
        weight, bias = (torch.from_numpy(exits.read(f"{exit.name}.map.{part}")) for part in ("weight", "bias"))
        hidden = hidden @ weight.T + bias
    for index in range(exit.num_blocks):
        prefix = f"{exit.name}.layers.{index}."
        names = [name for name in exits.stored.tensors if name.startswith(prefix)]
        weights = {name.removeprefix(prefix): exits.read(name) for name in names}
        tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
        hidden = DecoderLayer(source.architecture, trunk.rope, tensors)(hidden)
    return trunk.logits(trunk.norm(hidden))[0].numpy()


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_exits_in_fp32_equal_torch(build: Callable[..., Built], family: str, config: dict[str, Any]) -> None:
    built = build(family, **config)
    for path in PATHS:
        expected = expected_logits(built.source, built.exits, path, IDS)
        tape = built.tape()
        np.testing.assert_allclose(tape.prefill(0, IDS[:9], path), expected[8], **TOLERANCE)
        np.testing.assert_allclose(tape.prefill(0, IDS[9:17], path, 9), expected[16], **TOLERANCE)
        for position in range(17, len(IDS)):
            (logits,) = tape.decode((path, position, IDS[position]))
            np.testing.assert_allclose(logits, expected[position], **TOLERANCE)


def test_exits_of_the_reference_differ_from_each_other(build: Callable[..., Built]) -> None:
    built = build()
    found = [expected_logits(built.source, built.exits, path, IDS)[-1] for path in PATHS]
    for index, one in enumerate(found):
        for other_index, other in enumerate(found[:index]):
            is_same_exit = {PATHS[index], PATHS[other_index]} == {"math", "riddle"}
            assert (cosine(one, other) > 0.9) == is_same_exit


@pytest.mark.parametrize(("family", "precision"), QUANTISED)
def test_exits_quantised_stay_close_to_torch(
    build: Callable[..., Built], library: Callable[[str], Path | None], family: str, precision: str
) -> None:
    built = build(family, precision)
    tape = built.tape(library(precision))
    for path in PATHS:
        expected = expected_logits(built.source, built.exits, path, IDS)
        assert cosine(tape.prefill(0, IDS[:17], path), expected[16]) > CLOSENESS[precision]
        (logits,) = tape.decode((path, 17, IDS[17]))
        assert cosine(logits, expected[17]) > CLOSENESS[precision]


@pytest.mark.parametrize("precision", ["fp32", "int8", "w8a8", "w8a8-native"])
def test_exits_keep_their_map_in_fp32(build: Callable[..., Built], precision: str) -> None:
    import onnx

    built = build("llama", precision)
    graph = onnx.load(built.student.graph(precision, "math_exit"))
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds[:2] == ["MatMul", "Add"]
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    assert {types["map.weight"], types["map.bias"]} == {onnx.TensorProto.FLOAT}
    names = {tensor.name for tensor in onnx.load(built.student.graph(precision, "legal_exit")).graph.initializer}
    assert not {"map.weight", "map.bias"} & names


MIXES = {
    "grouped": ("full", "legal", None, "math", "riddle", "math", "fact"),
    # The exit that runs last has rows on both sides: in one range it would write over those between.
    "parted": ("full", "legal", "fact", None, "math", "riddle", "fact"),
}


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "w8a8-native"])
@pytest.mark.parametrize("mix", MIXES)
def test_exits_mixed_in_one_step_equal_each_alone(
    build: Callable[..., Built], library: Callable[[str], Path | None], precision: str, mix: str
) -> None:
    """In the order of the engine, and in one that separates the rows of an exit."""
    built = build("llama", precision)
    mixed = built.tape(library(precision))
    rows = []
    for slot, path in enumerate(MIXES[mix]):
        ids = PROMPTS[path][slot % 2 :] if path else ()
        if path:
            mixed.prefill(slot, ids, path)
        rows.append(DecodeRow(path=path, position=len(ids), token_id=60 + slot if path else 0))
    logits = mixed.run(decode=tuple(rows))
    alone = built.tape(library(precision))
    for slot, row in enumerate(rows):
        if row.path is not None:
            alone.prefill(0, PROMPTS[row.path][slot % 2 :], row.path)
            (expected,) = alone.decode((row.path, row.position, row.token_id))
            if precision == "fp32":
                np.testing.assert_allclose(logits[slot], expected, **TOLERANCE)
            else:
                np.testing.assert_array_equal(logits[slot], expected)


def test_exits_run_once_a_step_when_their_rows_are_neighbours(build: Callable[..., Built]) -> None:
    runner = build().tape().runner

    def ranges(*paths: str | None) -> list[tuple[str, int, int]]:
        found = runner._row_ranges((path, 1) for path in paths)
        return [(stage, run.first, run.end) for stage, run in found]

    assert ranges("full", None, "legal", "math", None, "riddle", "fact") == [
        ("knowledge", 0, 7),
        ("math_exit", 3, 6),
        ("fact_exit", 6, 7),
        ("reasoning", 0, 3),
        ("legal_exit", 2, 3),
        ("adapter", 0, 1),
        ("adapter_exit", 0, 1),
    ]
    assert ranges("math", "fact", "riddle") == [
        ("knowledge", 0, 3),
        ("math_exit", 0, 1),
        ("math_exit", 2, 3),
        ("fact_exit", 1, 2),
    ]


def test_exits_prefill_beside_rows_of_other_exits(build: Callable[..., Built]) -> None:
    built = build()
    mixed, alone = built.tape(), built.tape()
    for each in (mixed, alone):
        each.prefill(0, PROMPTS["math"], "math")
    row = DecodeRow(path="math", position=7, token_id=60)
    prompts = (chunk(1, IDS[:8], "fact"), chunk(2, IDS[1:9], "math"), chunk(3, IDS[2:10], "riddle"))
    logits = mixed.run(decode=(row,), prefill=prompts)
    np.testing.assert_allclose(logits[0], alone.decode(("math", 7, 60))[0], **TOLERANCE)
    for index, prompt in enumerate(prompts):
        expected = alone.prefill(5, prompt.token_ids, prompt.path)
        np.testing.assert_allclose(logits[1 + index], expected, **TOLERANCE)


def test_exits_of_rows_and_prompts_in_one_pass_have_the_bits_they_have_apart(
    build: Callable[..., Built], native_library: Path
) -> None:
    """Prompts that go on, on exits with a block and with a map; padding stands in the slot of one of them."""
    built = build("llama", "w8a8-native")
    joint, single = built.tape(native_library), never_joining(built.tape(native_library))
    paths = ("full", "legal", None, "math", "riddle", "fact")
    rows = [DecodeRow(path=path, position=3 + slot, token_id=60 + slot) for slot, path in enumerate(paths)]
    starts = {**dict.fromkeys(range(8), 0), 2: 4, 6: 2}
    for tape in (joint, single):
        for slot, path in enumerate(paths):
            tape.prefill(slot, IDS[: 3 + slot] if path else IDS[: starts[slot]], path or "fact")
        tape.prefill(6, IDS[: starts[6]], "math")
    prompts = ((2, IDS[4:9], "fact"), (6, IDS[2:12], "math"), (7, IDS[:1], "legal"))
    chunks = [replace(chunk(slot, ids, path, starts[slot]), keeps_states=True) for slot, ids, path in prompts]
    step = StepInput(decode=tuple(rows), prefill=tuple(chunks))
    assert joint.runner._can_join(step)
    together = joint.runner.forward(step).copy()
    states = [joint.states(one) for one in chunks]
    assert (
        np.delete(together[:6], 2, axis=0).tobytes() == np.delete(single.run(decode=tuple(rows)), 2, axis=0).tobytes()
    )
    for index, one in enumerate(chunks):
        assert together[6 + index].tobytes() == single.run(prefill=(one,))[0].tobytes()
        assert states[index].tobytes() == single.states(one).tobytes()
    later = [(path or "fact", 9 if path is None else 4 + slot, 7) for slot, path in enumerate(paths)]
    later += [("math", 12, 7), ("legal", 1, 7)]
    assert joint.decode(*later).tobytes() == single.decode(*later).tobytes()


@pytest.mark.parametrize("prefix_cache_bytes", [0, 10_000_000])
def test_engine_gives_every_path_the_tokens_it_gives_it_alone(
    build: Callable[..., Built], make_listener: Any, prefix_cache_bytes: int
) -> None:
    """Streams on five paths that come and go at different times, then each by itself on a fresh engine."""
    built = build("llama", "w8a8")
    config = EngineConfig(max_running=8, precision="w8a8", num_threads=1, prefix_cache_bytes=prefix_cache_bytes)
    long = tuple(itertools.islice(itertools.cycle(IDS), 40))
    requests = [
        GenerationRequest(
            id=f"{path}-{number}",
            prompt_token_ids=long if number == 1 else (*IDS[number:], 7 + number),
            path=path,
            sampling=SamplingParams(max_tokens=5 + 3 * number, temperature=0.0, ignore_eos=True),
        )
        for number in range(3)
        for path in PATHS
    ]

    def run(batch: list[GenerationRequest]) -> Any:
        listener, engine = make_listener(), build_engine(built.student, config)
        engine._publish = listener.publish
        engine._loading.run()
        for request in batch:
            engine.submit(request)
        while engine.step():
            pass
        return listener

    together = run(requests)
    for request in requests:
        assert together.tokens(request.id) == run([request]).tokens(request.id), request.id
