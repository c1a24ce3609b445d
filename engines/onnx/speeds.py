"""How fast the variants of a student are on this machine: measured once, kept beside the student."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort

from engines.contract import DecodeRow, PrefillChunk, StepInput
from models.student import HEAD, Student

logger = logging.getLogger(__name__)

SPEEDS_NAME = "speeds.json"
DECODE_ROWS = (1, 4, 32)
PREFILL_TOKENS = 256
POSITION = 100
NUM_RUNS = 5


class Speeds(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds on the shortest path with the head: a decode step by number of rows, and a prompt token."""

    decode_step_s: dict[int, float]
    prefill_token_s: float

    def decode_token_s(self, num_rows: int) -> float:
        """Per token at the measured row count nearest to `num_rows`."""
        nearest = min(self.decode_step_s, key=lambda measured: abs(measured - num_rows))
        return self.decode_step_s[nearest] / nearest


class SpeedFile(msgspec.Struct, frozen=True, kw_only=True):
    """Speeds hold for one machine, one thread count and one ONNX Runtime."""

    machine: str
    variants: dict[str, Speeds]


def speeds_of(student: Student, variants: Sequence[str], num_threads: int, library: Path | None) -> dict[str, Speeds]:
    """Speeds of the named variants, measured where they are not known yet."""
    machine = f"{_processor()}, {num_threads} threads, onnxruntime {ort.__version__}"
    file = student.folder / SPEEDS_NAME
    known = read_speeds(file, machine)
    missing = [variant for variant in variants if variant not in known]
    for variant in missing:
        known[variant] = _measure(student, variant, num_threads, library)
    if missing:
        _write(file, SpeedFile(machine=machine, variants=known))
    return {variant: known[variant] for variant in variants}


def read_speeds(file: Path, machine: str | None = None) -> dict[str, Speeds]:
    """What was measured on `machine` (None: wherever); empty when there is nothing of use."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=SpeedFile)
    except (OSError, msgspec.DecodeError):
        return {}
    return dict(found.variants) if machine in (None, found.machine) else {}


def _write(file: Path, speeds: SpeedFile) -> None:
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(speeds)))
    except OSError as error:
        logger.warning("speeds not kept file=%s error=%s: they will be measured again", file, error)


def _measure(student: Student, variant: str, num_threads: int, library: Path | None) -> Speeds:
    from engines.onnx.plan import PrecisionPlan
    from engines.onnx.runner import OnnxRunner, RunnerLimits

    path = min(student.manifest.paths, key=lambda path: len(path.modules))
    limits = RunnerLimits(num_slots=max(DECODE_ROWS), capacity_tokens=512, num_threads=num_threads, library=library)
    runner = OnnxRunner(student, PrecisionPlan(many=variant), limits)
    for stage in (*student.manifest.stages(path), HEAD):
        runner.load(stage)
    decode_step_s = {}
    for num_rows in DECODE_ROWS:
        row = DecodeRow(path=path.name, position=POSITION, token_id=1)
        decode_step_s[num_rows] = _fastest_s(partial(runner.forward, StepInput(decode=(row,) * num_rows)))
    chunk = PrefillChunk(slot=0, path=path.name, start=0, token_ids=tuple(range(PREFILL_TOKENS)), wants_logits=True)
    prefill_s = _fastest_s(partial(runner.forward, StepInput(prefill=(chunk,))))
    return Speeds(decode_step_s=decode_step_s, prefill_token_s=prefill_s / PREFILL_TOKENS)


def _fastest_s(run: Callable[[], object]) -> float:
    """The shortest of a few runs: on a shared machine the others measure the neighbours."""
    run()
    times = []
    for _ in range(NUM_RUNS):
        started_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - started_s)
    return float(np.min(times))


def _processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
