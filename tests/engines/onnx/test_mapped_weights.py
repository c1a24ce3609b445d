"""Memory of mapped files is given back, and what they have is still there."""

import contextlib
import mmap
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.onnx import mapped_weights
from engines.onnx.mapped_weights import MappedWeights
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from models.student.folder import HEAD

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident pages are read from /proc")

SIZE = 64 * mmap.PAGESIZE


def resident_bytes(file: Path) -> int:
    """Of the file's mappings in this process."""
    found = 0
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
        first, _, fields = mapping.partition("\n")
        if first.endswith(str(file)):
            found += sum(int(kib) for kib in re.findall(r"^Rss:\s+(\d+) kB", fields, re.MULTILINE)) * 1024
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "a student" / "some weights"
    found.parent.mkdir()
    found.write_bytes(bytes(range(256)) * (SIZE // 256))
    return found


@contextlib.contextmanager
def mapped_and_read(file: Path, weights: MappedWeights, access: int = mmap.ACCESS_READ) -> Iterator[mmap.mmap]:
    """As a session would map it."""
    with file.open("rb") as stream, contextlib.ExitStack() as stack:
        with weights.opening():
            mapped = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=access))
        assert bytes(mapped)
        yield mapped


def test_pages_go_and_come_again(file: Path) -> None:
    weights = MappedWeights(file.parent)
    with mapped_and_read(file, weights) as mapped:
        assert resident_bytes(file) == SIZE
        weights.release_pages()
        assert resident_bytes(file) == 0
        assert bytes(mapped) == file.read_bytes()


def test_folder_may_be_named_by_a_link(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file.parent)
    weights = MappedWeights(link)
    with mapped_and_read(file, weights):
        weights.release_pages()
        assert resident_bytes(file) == 0


def test_pages_that_were_written_stay(file: Path) -> None:
    weights = MappedWeights(file.parent)
    with mapped_and_read(file, weights, mmap.ACCESS_COPY) as mapped:
        mapped[:5] = b"mine!"
        weights.release_pages()
        assert mapped[:5] == b"mine!"


@pytest.mark.parametrize(("swap_kib", "num_released"), [(0, 2), (4, 1)])
def test_pages_that_were_written_and_swapped_out_stay(
    file: Path, monkeypatch: pytest.MonkeyPatch, swap_kib: int, num_released: int
) -> None:
    """As the kernel describes them: swapping takes a system that is set up for it."""
    mapping = (
        "7f0000{0}000-7f0000{0}fff rw-p 00000000 fe:00 7    {1}\nAnonymous:  0 kB\nSwap:  {2} kB\nSwapPss:  0 kB\n"
    )
    smaps = file.with_name("smaps")
    smaps.write_text(mapping.format(1, file, swap_kib) + mapping.format(2, file, 0))
    weights = MappedWeights(file.parent)
    with monkeypatch.context() as patch:
        patch.setattr(mapped_weights, "MAPPINGS_IN_DETAIL", smaps)
        weights._own = {(0x7F00000000, 0x7F00003000)}
        assert len(list(weights._unwritten())) == num_released


def test_pages_of_other_folders_and_of_others_mappings_stay(file: Path, tmp_path: Path) -> None:
    """Those of a session that somebody else opened may go away at any time."""
    elsewhere, others = MappedWeights(tmp_path / "elsewhere"), MappedWeights(file.parent)
    with mapped_and_read(file, elsewhere):
        elsewhere.release_pages()
        others.release_pages()
        assert resident_bytes(file) == SIZE


def test_parts_of_joined_mappings_go(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system shows one mapping where two of the same file lie side by side."""
    smaps = file.with_name("smaps")
    smaps.write_text(f"1000-9000 r--p 00000000 fe:00 7    {file}\nAnonymous:  0 kB\nSwap:  0 kB\n")
    monkeypatch.setattr(mapped_weights, "MAPPINGS_IN_DETAIL", smaps)
    weights = MappedWeights(file.parent)
    weights._own = {(0x0, 0x1000), (0x2000, 0x3000), (0x2000, 0x4000), (0x7000, 0xB000), (0xF000, 0x10000)}
    assert list(weights._unwritten()) == [(0x2000, 0x4000), (0x7000, 0x9000)]


def test_nothing_happens_where_mappings_cannot_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAPPINGS", "MAPPINGS_IN_DETAIL"):
        monkeypatch.setattr(mapped_weights, name, file.with_name("missing"))
    weights = MappedWeights(file.parent)
    with mapped_and_read(file, weights):
        weights.release_pages()


def test_loaded_student_keeps_no_page_that_was_copied(
    tiny_student: Callable[..., Any], native_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tiny_student("llama", ("w8a8-native",)).student
    weights = sorted(student.folder.glob("*.weights"))
    limits = RunnerLimits(num_slots=2, capacity_tokens=32, num_threads=1, library=native_library)

    def resident_after_loading() -> list[int]:
        runner = OnnxRunner(student, PrecisionPlan(many="w8a8-native"), limits)
        for stage in (HEAD, *student.manifest.stage_order()):
            runner.load(stage)
        return [resident_bytes(one) for one in weights]

    assert not any(resident_after_loading())
    monkeypatch.setattr(MappedWeights, "release_pages", lambda weights: None)
    assert any(resident_after_loading())
