"""Rows of several widths in one pass: against the torch reference, and against each alone."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.build import build_engine
from engines.config import EngineConfig
from engines.contract import DecodeRow, PrefillChunk, StepInput
from engines.evaluation.scorer import PathRuns
from engines.onnx.plan import PrecisionPlan
from engines.sequence import GenerationRequest, SamplingParams
from models.building.build import build_student
from models.building.exits import read_exits
from models.building.width_file import NarrowPath, read_width_file
from models.errors import WeightsError
from models.reference import ReferenceDecoder
from models.sources.source import open_source
from models.student.folder import Student
from tests.engines.onnx.test_runner import CLOSENESS, IDS, TOLERANCE, Tape, chunk, cosine
from tests.models.exit_files import write_tiny_exits
from tests.models.width_files import NUM_NEURONS, PLAN, write_tiny_widths

Float = npt.NDArray[np.float32]

WIDTH_OF = {"full": "", **{path.name: path.width for path in PLAN.paths}}
PATHS = tuple(WIDTH_OF)
FAMILIES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    ("qwen3", {}),
]
STOCK = ["fp32", "int8", "w8a8"]
BITWISE = ["fp32", "w8a8"]
"""Precisions in which a row's bits do not depend on the number of rows."""


class Built:
    """A tiny model, its widths, and a student of both."""

    def __init__(self, folder: Path, out: Path, precision: str, **parts: Any) -> None:
        self.folder = folder
        self.source = open_source(folder)
        self.widths = read_width_file(write_tiny_widths(out.with_suffix(".widths.safetensors"), self.source))
        build_student(folder, out, widths=self.widths.file, precisions=(precision,), **parts)
        self.student = Student.open(out)
        self.precision = precision

    def tape(self, student: Student | None = None, num_slots: int = 8, library: Path | None = None) -> Tape:
        return Tape(student or self.student, PrecisionPlan(many=self.precision), library, num_slots=num_slots)

    def logits(self, path: str) -> Float:
        """Every position's logits of a path that runs all modules, in plain torch. Shapes: returns [T, V]."""
        changed = self.widths.narrow_tensors(self.source, WIDTH_OF[path]) if WIDTH_OF[path] else {}
        return np.asarray(ReferenceDecoder(self.source, changed).forward(IDS))


MakeBuilt = Callable[..., Built]


@pytest.fixture
def build(tiny_source: Any, tmp_path: Path) -> MakeBuilt:
    def make(family: str = "llama", precision: str = "fp32", parts: Any = None, **config: Any) -> Built:
        folder = tiny_source(family, intermediate_size=NUM_NEURONS, **config)
        return Built(folder, tmp_path / f"{folder.name}-{precision}", precision, **(parts or {}))

    return make


@pytest.mark.parametrize(("family", "config"), FAMILIES)
@pytest.mark.parametrize("path", PATHS)
def test_widths_in_fp32_equal_torch(build: MakeBuilt, family: str, config: dict[str, Any], path: str) -> None:
    built = build(family, **config)
    expected, tape = built.logits(path), built.tape()
    np.testing.assert_allclose(tape.prefill(0, IDS[:9], path), expected[8], **TOLERANCE)
    np.testing.assert_allclose(tape.prefill(0, IDS[9:17], path, 9), expected[16], **TOLERANCE)
    for position in range(17, len(IDS)):
        (logits,) = tape.decode((path, position, IDS[position]))
        np.testing.assert_allclose(logits, expected[position], **TOLERANCE)


def test_widths_of_the_reference_differ_from_each_other(build: MakeBuilt) -> None:
    built = build()
    for one, other in itertools.combinations([built.logits(path)[-1] for path in PATHS], 2):
        assert cosine(one, other) < 0.9


@pytest.mark.parametrize("precision", ["int8", "w8a8"])
def test_widths_quantised_stay_close_to_torch(build: MakeBuilt, precision: str) -> None:
    built = build(precision=precision)
    tape = built.tape()
    for path in PATHS:
        expected = built.logits(path)
        assert cosine(tape.prefill(0, IDS[:17], path), expected[16]) > CLOSENESS[precision]
        (logits,) = tape.decode((path, 17, IDS[17]))
        assert cosine(logits, expected[17]) > CLOSENESS[precision]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_full_path_in_fp32_has_the_bits_of_a_student_without_widths(
    build: MakeBuilt, tmp_path: Path, family: str
) -> None:
    built = build(family)
    build_student(built.folder, tmp_path / "plain", precisions=("fp32",))
    plain, narrow = built.tape(Student.open(tmp_path / "plain")), built.tape()
    np.testing.assert_array_equal(narrow.prefill(0, IDS), plain.prefill(0, IDS))
    np.testing.assert_array_equal(narrow.prefill(1, IDS[:1]), plain.prefill(1, IDS[:1]))
    for path, slot in (("middle", 2), ("slim", 3)):
        narrow.prefill(slot, IDS[slot:], path)
    beside = (("middle", len(IDS) - 2, 8), ("slim", len(IDS) - 3, 9))
    rows = (("full", len(IDS), 11), ("full", 1, 12))
    np.testing.assert_array_equal(narrow.decode(*rows, *beside)[:2], plain.decode(*rows))
    np.testing.assert_array_equal(narrow.decode(rows[0])[0], plain.decode(rows[0])[0])


MIXES: dict[str, tuple[str | None, ...]] = {
    "each": ("full", "wide", "middle", "slim"),
    "several": ("full", "full", "wide", "middle", "middle", "slim", "slim"),
    "without some": ("full", "middle", "middle"),
    "narrow alone": ("middle", "slim", "slim"),
    "one width": ("slim", "slim", "slim"),
    "holes": ("full", None, "wide", None, "slim", None, "slim"),
    # Not in the engine's order: a module may not run once for all of them.
    "out of order": ("slim", "full", "wide", None, "full", "middle"),
}


def prompt_of(slot: int) -> Sequence[int]:
    return IDS[slot % 7 : slot % 7 + 5 + slot % 8]


def prefilled(tape: Tape, paths: Sequence[str | None]) -> tuple[DecodeRow, ...]:
    """A decode row for each path, in slots whose prompts were run."""
    rows = []
    for slot, path in enumerate(paths):
        ids = prompt_of(slot) if path else ()
        if path:
            tape.prefill(slot, ids, path)
        rows.append(DecodeRow(path=path, position=len(ids), token_id=60 + slot if path else 0))
    return tuple(rows)


@pytest.mark.parametrize("precision", STOCK)
@pytest.mark.parametrize("mix", MIXES)
def test_widths_mixed_in_one_step_equal_each_alone(build: MakeBuilt, precision: str, mix: str) -> None:
    built = build(precision=precision)
    mixed = built.tape()
    rows = prefilled(mixed, MIXES[mix])
    logits = mixed.run(decode=rows)
    for slot, row in enumerate(rows):
        if row.path is None:
            continue
        alone = built.tape()
        alone.prefill(0, prompt_of(slot), row.path)
        (expected,) = alone.decode((row.path, row.position, row.token_id))
        if precision in BITWISE:
            np.testing.assert_array_equal(logits[slot], expected)
        else:
            np.testing.assert_allclose(logits[slot], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", BITWISE)
def test_a_row_has_the_same_bits_beside_any_number_of_rows_of_other_widths(build: MakeBuilt, precision: str) -> None:
    built = build(precision=precision)
    tape = built.tape(num_slots=34)
    widest_first = sorted((PATHS * 9)[:33], key=PATHS.index)
    rows = prefilled(tape, widest_first[:33])
    expected = tape.run(decode=rows)
    for count in (1, 2, 3, 5, 9, 17, 26, 32):
        np.testing.assert_array_equal(tape.run(decode=rows[:count]), expected[:count])


@pytest.mark.parametrize("precision", BITWISE)
def test_prompts_of_several_widths_beside_rows_have_the_bits_of_each_alone(build: MakeBuilt, precision: str) -> None:
    built = build(precision=precision)
    mixed = built.tape()
    rows = prefilled(mixed, ("full", "slim"))
    prompts = [(2, "full"), (3, "wide"), (4, "slim"), (5, "slim")]
    chunks = tuple(chunk(slot, IDS[slot : slot + 8], path) for slot, path in prompts)
    logits = mixed.run(decode=rows, prefill=chunks)
    alone = built.tape()
    for index, (slot, path) in enumerate(prompts):
        expected = alone.prefill(0, IDS[slot : slot + 8], path)
        np.testing.assert_allclose(logits[2 + index], expected, rtol=1e-5, atol=1e-5)
    for slot, row in enumerate(rows):
        (expected,) = built_decode(built, row, slot)
        np.testing.assert_array_equal(logits[slot], expected)


def test_rows_and_prompts_of_several_widths_in_one_pass_have_the_bits_they_have_apart(
    build: MakeBuilt, native_library: Path
) -> None:
    built = build(precision="w8a8-native")
    joint, single = (built.tape(library=native_library) for _ in range(2))
    rows = prefilled(joint, ("full", "wide", "slim"))
    assert prefilled(single, ("full", "wide", "slim")) == rows
    prompts = (("slim", 9), ("full", 5), ("middle", 1), ("wide", 12), ("slim", 2))
    chunks = [chunk(3 + number, IDS[:length], path) for number, (path, length) in enumerate(prompts)]
    step = StepInput(decode=rows, prefill=tuple(replace(one, keeps_states=True) for one in chunks))
    assert joint.runner._can_join(step)
    together = joint.runner.forward(step).copy()
    exact = joint.runner.exact_logits(range(len(together)))
    assert together.tobytes() == np.concatenate([single.run(decode=rows), *map(alone_of(single), chunks)]).tobytes()
    assert exact.tobytes() == together.tobytes()
    # what the pass wrote into the cache is the same too
    later = [(row.path, row.position + 1, 7) for row in rows] + [(path, length, 7) for path, length in prompts]
    assert joint.decode(*later).tobytes() == single.decode(*later).tobytes()


def alone_of(tape: Tape) -> Callable[[PrefillChunk], Float]:
    return lambda one: tape.run(prefill=(one,))


def built_decode(built: Built, row: DecodeRow, slot: int) -> Float:
    alone = built.tape()
    assert row.path is not None
    alone.prefill(0, prompt_of(slot), row.path)
    return alone.decode((row.path, row.position, row.token_id))


def test_rows_run_a_module_together_while_none_is_wider_than_the_one_before(build: MakeBuilt) -> None:
    runner = build().tape().runner

    def ranges(*paths: str | None) -> list[tuple[int, list[int]]]:
        found = runner._row_ranges((path, 1) for path in paths)
        return [(run.first, run.bounds) for stage, run in found if stage == "reasoning"]

    assert ranges("full", "full", "wide", "slim") == [(0, [2, 3, 3, 4])]
    assert ranges("slim", "slim") == [(0, [0, 0, 0, 2])]
    assert ranges(None, "middle") == [(1, [1, 1, 2, 2])]
    assert ranges("full", None, "middle", None, "middle", "slim") == [(0, [1, 1, 5, 6])]
    assert ranges("wide", "full", "slim", "slim", "middle") == [
        (0, [0, 1, 1, 1]),
        (1, [2, 2, 2, 4]),
        (4, [4, 4, 5, 5]),
    ]


def test_exits_run_whole_after_narrow_modules(build: MakeBuilt, tiny_source: Any, tmp_path: Path) -> None:
    """A narrow path through a trained exit with a block, beside one of the whole width."""
    folder = tiny_source("llama", intermediate_size=NUM_NEURONS)
    source = open_source(folder)
    exits = write_tiny_exits(tmp_path / "exits.safetensors", source)
    short = NarrowPath(name="slim-legal", width="slim", modules=("knowledge", "reasoning"), exit="legal_exit")
    widths = write_tiny_widths(tmp_path / "w.safetensors", source, paths=(*PLAN.paths, short))
    build_student(folder, tmp_path / "out", exits=exits, widths=widths, precisions=("fp32",))
    student = Student.open(tmp_path / "out")
    ranks = student.manifest.path_ranks
    assert sorted(ranks, key=ranks.__getitem__)[:6] == ["full", "wide", "middle", "slim", "legal", "slim-legal"]
    tape = Tape(student, PrecisionPlan(many="fp32"))
    rows = prefilled(tape, ("full", "slim", "legal", "slim-legal"))
    logits = tape.run(decode=rows)
    for slot, row in enumerate(rows):
        alone = Tape(student, PrecisionPlan(many="fp32"))
        assert row.path is not None
        alone.prefill(0, prompt_of(slot), row.path)
        np.testing.assert_array_equal(alone.decode((row.path, row.position, row.token_id))[0], logits[slot])
    changed = read_width_file(widths).narrow_tensors(source, "slim")
    hidden = ReferenceDecoder(source, changed)
    states = hidden.layers(hidden.embed(IDS[:9]), 0, 3)
    block = {
        name.replace("legal_exit.layers.0", "model.layers.3"): value
        for name, value in _exit_tensors(exits).items()
        if name.startswith("legal_exit.layers.0")
    }
    last = ReferenceDecoder(source, block)
    expected = last.logits(last.layers(states, 3, 1))[-1]
    np.testing.assert_allclose(tape.prefill(5, IDS[:9], "slim-legal"), expected, **TOLERANCE)


def _exit_tensors(file: Path) -> dict[str, Float]:
    exits = read_exits(file)
    return {name: exits.read(name) for name in exits.stored.tensors}


@pytest.mark.parametrize("prefix_cache_bytes", [0, 10_000_000])
def test_engine_gives_every_width_the_tokens_it_gives_it_alone(
    build: MakeBuilt, make_listener: Any, prefix_cache_bytes: int
) -> None:
    """Streams of four widths with one beginning, which no width may take from another, then each by itself."""
    built = build(precision="w8a8")
    config = EngineConfig(max_running=8, precision="w8a8", num_threads=1, prefix_cache_bytes=prefix_cache_bytes)
    long = tuple(itertools.islice(itertools.cycle(IDS), 70))
    requests = [
        GenerationRequest(
            id=f"{path}-{number}",
            prompt_token_ids=long if number else (*IDS[number:], 7),
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


def test_whole_texts_are_scored_at_the_width_of_their_path(build: MakeBuilt) -> None:
    built = build()
    tape = built.tape()
    runs = PathRuns(tape.runner, built.student.manifest, PATHS)
    for _ in range(2):  # the second time over what other paths left behind
        for path, normed in runs.normed(IDS).items():
            np.testing.assert_allclose(tape.runner.run_head(normed), built.logits(path), **TOLERANCE)


@pytest.mark.parametrize("has_widths", [True, False])
def test_graphs_of_other_widths_than_the_manifest_says_are_refused(
    build: MakeBuilt, tmp_path: Path, has_widths: bool
) -> None:
    built = build()
    build_student(built.folder, tmp_path / "plain", precisions=("fp32",))
    plain = Student.open(tmp_path / "plain", verify=False)
    manifest, graphs = (built.student.manifest, plain) if has_widths else (plain.manifest, built.student)
    mixed = Student(folder=graphs.folder, manifest=manifest, tokenizer=plain.tokenizer, is_verified=False)
    stated, found = (3, 0) if has_widths else (0, 3)
    with pytest.raises(
        WeightsError, match=rf"knowledge\.fp32\.onnx has {found} widths, and the student {stated} there"
    ):
        built.tape(mixed)
