"""Rows of several widths through fenhe's own operators: close to torch, and the bits of each row alone."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from engines.contract import DecodeRow
from engines.onnx.plan import PrecisionPlan
from models.building.build import build_student
from models.building.width_file import read_width_file, write_width_file
from models.reference import ReferenceDecoder
from models.sources.source import open_source
from models.student.folder import Student
from tests.engines.onnx.test_runner import CLOSENESS, IDS, Tape, chunk, cosine
from tests.models.width_files import MIXED, MIXED_PATHS, MIXED_WIDTHS, NUM_NEURONS, PLAN, WIDTHS, write_tiny_widths

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native operators are built on Linux")

Float = npt.NDArray[np.float32]

NATIVE = "w8a8-native"
WIDTH_OF = {"full": "", **{path.name: path.width for path in PLAN.paths}}
PATHS = tuple(WIDTH_OF)


class Narrow:
    """A tiny model, its widths, and a student of both in native operators."""

    def __init__(
        self, folder: Path, out: Path, library: Path, precisions: tuple[str, ...] = (NATIVE,), **plan: Any
    ) -> None:
        self.folder = folder
        self.library = library
        self.source = open_source(folder)
        self.widths = read_width_file(write_tiny_widths(out.with_suffix(".safetensors"), self.source, **plan))
        build_student(folder, out, widths=self.widths.file, precisions=precisions)
        self.student = Student.open(out)

    def tape(self, student: Student | None = None, precision: str = NATIVE, num_slots: int = 8) -> Tape:
        plan = PrecisionPlan(many=precision)
        return Tape(student or self.student, plan, library=self.library, num_slots=num_slots)

    def logits(self, path: str) -> Float:
        """Every position's logits in plain torch. Shapes: returns [T, V]."""
        width = self.student.manifest.path(path).width
        changed = self.widths.narrow_tensors(self.source, width) if width else {}
        return np.asarray(ReferenceDecoder(self.source, changed).forward(IDS))


MakeNarrow = Callable[..., Narrow]


@pytest.fixture
def narrow(tiny_source: Any, native_library: Path, tmp_path: Path) -> MakeNarrow:
    def make(family: str = "llama", precisions: tuple[str, ...] = (NATIVE,), **config: Any) -> Narrow:
        folder = tiny_source(family, intermediate_size=NUM_NEURONS, **config)
        return Narrow(folder, tmp_path / "narrow", native_library, precisions)

    return make


@pytest.mark.parametrize(
    ("family", "config"),
    [("llama", {}), ("llama", {"attention_bias": True}), ("qwen2", {}), ("qwen3", {})],
    ids=["llama", "biases", "qwen2", "qwen3"],
)
def test_every_width_stays_close_to_torch(narrow: MakeNarrow, family: str, config: dict[str, Any]) -> None:
    made = narrow(family, **config)
    tape = made.tape()
    for path in PATHS:
        expected = made.logits(path)
        given = [tape.prefill(0, IDS[:9], path), tape.prefill(0, IDS[9:17], path, 9)]
        given += [tape.decode((path, position, IDS[position]))[0] for position in range(17, len(IDS))]
        close = [cosine(a, b) for a, b in zip(given, expected[[8, 16, *range(17, len(IDS))]], strict=True)]
        assert np.mean(close) > CLOSENESS[NATIVE], (path, close)


@pytest.mark.parametrize("precision", [NATIVE, "w8a8", "fp32"])
def test_mixed_widths_stay_close_to_torch_and_keep_their_bits_beside_others(
    tiny_source: Any, native_library: Path, tmp_path: Path, precision: str
) -> None:
    folder = tiny_source("llama", intermediate_size=NUM_NEURONS)
    mixture = {"widths": MIXED_WIDTHS, "mixed": MIXED, "paths": MIXED_PATHS}
    made = Narrow(folder, tmp_path / "mixed", native_library, (precision,), **mixture)
    paths = [path.name for path in made.student.manifest.paths]
    assert len(paths) == 6
    tape = made.tape(precision=precision)
    rows = rows_of(tape, paths)
    together = tape.run(decode=rows)
    for slot, path in enumerate(paths):
        assert cosine(tape.prefill(7, IDS, path), made.logits(path)[-1]) > CLOSENESS.get(precision, 0.9999), path
        alone = made.tape(precision=precision)
        alone.prefill(0, prompt_of(slot), path)
        last = alone.decode((path, rows[slot].position, rows[slot].token_id))[0]
        np.testing.assert_array_equal(last, together[slot])


def test_the_full_path_stays_close_to_a_student_without_widths(narrow: MakeNarrow, tmp_path: Path) -> None:
    """Not its bits: the order of neurons decides which of them are mixed before they are rounded."""
    made = narrow()
    build_student(made.folder, tmp_path / "plain", precisions=(NATIVE,))
    plain, wide = made.tape(Student.open(tmp_path / "plain")), made.tape()
    assert cosine(wide.prefill(0, IDS), plain.prefill(0, IDS)) > 0.99


def test_stock_and_native_graphs_share_their_weights(narrow: MakeNarrow) -> None:
    made = narrow(precisions=(NATIVE, "w8a8"))
    alone, both = (
        {file.name: file.stat().st_size for file in folder.glob("*.weights")}
        for folder in (narrow_alone(made), made.student.folder)
    )
    assert alone.keys() == both.keys()
    for name, size in both.items():
        assert size <= alone[name] + 8 * 1024  # small constants of the stock graphs
    for path in PATHS:
        native, stock = made.tape().prefill(0, IDS, path), made.tape(precision="w8a8").prefill(0, IDS, path)
        assert cosine(native, stock) > 0.99


def narrow_alone(made: Narrow) -> Path:
    out = made.student.folder.with_name("alone")
    build_student(made.folder, out, widths=made.widths.file, precisions=(NATIVE,))
    return out


def rows_of(tape: Tape, paths: list[str]) -> list[DecodeRow]:
    """A decode row for each path, in slots whose prompts were run."""
    rows = []
    for slot, path in enumerate(paths):
        ids = prompt_of(slot)
        tape.prefill(slot, ids, path)
        rows.append(DecodeRow(path=path, position=len(ids), token_id=60 + slot))
    return rows


def prompt_of(slot: int) -> tuple[int, ...]:
    return tuple(IDS[slot % 7 : slot % 7 + 5 + slot % 8])


def alone(made: Narrow, slot: int, row: DecodeRow) -> Float:
    tape = made.tape()
    assert row.path is not None
    tape.prefill(0, prompt_of(slot), row.path)
    logits: Float = tape.decode((row.path, row.position, row.token_id))[0]
    return logits


@pytest.mark.parametrize(
    "paths",
    [
        ["full", "wide", "middle", "slim"],
        ["full", "full", "wide", "middle", "middle", "slim", "slim"],
        ["middle", "slim", "slim"],
        ["full", "slim", "full", "wide", "slim"],
    ],
    ids=["each", "several", "narrow", "unsorted"],
)
def test_widths_mixed_in_one_step_have_the_bits_of_each_alone(narrow: MakeNarrow, paths: list[str]) -> None:
    made = narrow()
    tape = made.tape()
    rows = rows_of(tape, paths)
    for slot, logits in enumerate(tape.run(decode=tuple(rows))):
        np.testing.assert_array_equal(logits, alone(made, slot, rows[slot]))


def test_a_row_has_the_same_bits_beside_any_number_of_rows_of_other_widths(narrow: MakeNarrow) -> None:
    made = narrow()
    tape = made.tape(num_slots=34)
    rows = rows_of(tape, sorted((PATHS * 9)[:33], key=PATHS.index))
    expected = tape.run(decode=tuple(rows))
    for slot in (0, 8, 9, 17, 25, 32):
        np.testing.assert_array_equal(expected[slot], alone(made, slot, rows[slot]))
    for count in (1, 2, 3, 5, 9, 17, 26, 32):
        np.testing.assert_array_equal(tape.run(decode=tuple(rows[:count])), expected[:count])


def test_prompts_of_several_widths_beside_rows_have_the_bits_of_each_alone(narrow: MakeNarrow) -> None:
    made = narrow()
    tape = made.tape()
    rows = rows_of(tape, ["full", "slim"])
    prompts = [(2, "full"), (3, "wide"), (4, "slim"), (5, "slim")]
    chunks = tuple(chunk(slot, IDS[slot : slot + 8], path) for slot, path in prompts)
    logits = tape.run(decode=tuple(rows), prefill=chunks)
    for slot, row in enumerate(rows):
        np.testing.assert_array_equal(logits[slot], alone(made, slot, row))
    for index, (slot, path) in enumerate(prompts):
        np.testing.assert_array_equal(logits[2 + index], made.tape().prefill(0, IDS[slot : slot + 8], path))


@pytest.mark.parametrize("cut", [2, 9, 17])
def test_a_prompt_in_pieces_gives_the_same_bits_at_every_width(narrow: MakeNarrow, cut: int) -> None:
    made = narrow()
    tape = made.tape()
    for path in PATHS:
        whole = tape.prefill(0, IDS, path)
        tape.prefill(1, IDS[:cut], path)
        np.testing.assert_array_equal(tape.prefill(1, IDS[cut:], path, cut), whole)


def test_own_output_matrices_are_used_by_their_width_alone(narrow: MakeNarrow, tmp_path: Path) -> None:
    made = narrow()
    with_own = [width.name for width in WIDTHS if width.has_own_output]
    assert with_own == ["mid"]
    tensors = load_file(made.widths.file)
    for name in tensors:
        if name.endswith(".output"):
            tensors[name] = tensors[name][::-1].copy()
    other_file = tmp_path / "other.safetensors"
    write_width_file(other_file, made.widths.plan, tensors)
    build_student(made.folder, tmp_path / "other", widths=other_file, precisions=(NATIVE,))
    first, other = made.tape(), made.tape(Student.open(tmp_path / "other"))
    for path in PATHS:
        same = np.array_equal(first.prefill(0, IDS, path), other.prefill(0, IDS, path))
        assert same == (WIDTH_OF[path] != "mid"), path
