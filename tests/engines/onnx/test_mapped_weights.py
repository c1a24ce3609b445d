"""Memory of mapped files is given back, and what they have is still there."""

import mmap
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.onnx import mapped_weights
from engines.onnx.mapped_weights import release_pages
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
    found = tmp_path / "some weights"
    found.write_bytes(bytes(range(256)) * (SIZE // 256))
    return found


def test_pages_go_and_come_again(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = bytes(mapped)
        assert resident_bytes(file) == SIZE
        release_pages([file])
        assert resident_bytes(file) == 0
        assert bytes(mapped) == content


def test_link_to_a_file_names_its_pages_too(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert bytes(mapped)
        release_pages([link])
        assert resident_bytes(file) == 0


def test_pages_that_may_have_been_written_stay(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:5] = b"mine!"
        release_pages([file])
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
    monkeypatch.setattr(mapped_weights, "MAPPINGS", smaps)
    assert len(list(mapped_weights._unwritten_mappings({str(file)}))) == num_released


def test_pages_of_other_files_stay(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert bytes(mapped)
        release_pages([file.with_name("weights")])
        assert resident_bytes(file) == SIZE


def test_nothing_happens_where_mappings_cannot_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "MAPPINGS", file.with_name("missing"))
    release_pages([file])


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
    monkeypatch.setattr("engines.onnx.runner.release_pages", lambda files: None)
    assert any(resident_after_loading())
