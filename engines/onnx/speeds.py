"""How fast the variants of a student are on this machine: measured once, kept beside the student."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from engines.contract import DecodeRow, PrefillChunk, Runner, StepInput
from engines.machine import cpu_fields
from engines.onnx.plan import PrecisionPlan
from engines.onnx.runner import OnnxRunner, RunnerLimits
from engines.onnx.sessions import HeadSession, open_session
from engines.step_times import step_times
from models.student.folder import CHEAP_HEAD, HEAD, Student
from models.student.speeds import SpeedFile, Speeds, read_speeds, write_speeds

logger = logging.getLogger(__name__)

DECODE_ROWS = (1, 4, 32)
HEAD_ROWS = (1, 8, 32)
HEAD_RUNS = 60
PREFILL_TOKENS = 256
POSITION = 100
NUM_RUNS = 5


def speeds_of(student: Student, variants: Sequence[str], num_threads: int, library: Path | None) -> dict[str, Speeds]:
    """Speeds of the named variants, measured where they are not known yet."""
    processor = cpu_fields().get("model name", "unknown processor")
    machine = f"{processor}, {num_threads} threads, onnxruntime {ort.__version__}"
    kept = read_speeds(student.folder)
    known = dict(kept.variants) if kept is not None and kept.machine == machine else {}
    missing = [
        variant for variant in variants if variant not in known or not _is_complete(student, variant, known[variant])
    ]
    if missing:
        logger.info("measuring speeds precisions=%s: once on this machine, takes some seconds", ",".join(missing))
    for variant in missing:
        known[variant] = _measure(student, variant, num_threads, library)
    if missing:
        try:
            write_speeds(student.folder, SpeedFile(machine=machine, variants=known))
        except OSError as error:
            logger.warning("speeds not kept folder=%s error=%s: to be measured again", student.folder, error)
    return {variant: known[variant] for variant in variants}


def _is_complete(student: Student, variant: str, speeds: Speeds) -> bool:
    """Whether all was measured that is now: another version of fenhe, and before there was a cheap head, measured
    something else."""
    heads = (speeds.exact_head_s, speeds.cheap_head_s) if "cheap" in student.manifest.heads_at(variant) else ()
    return set(speeds.decode_step_s) == set(DECODE_ROWS) and all(set(times) == set(HEAD_ROWS) for times in heads)


def _measure(student: Student, variant: str, num_threads: int, library: Path | None) -> Speeds:
    path = min(student.manifest.paths, key=lambda path: (len(path.modules), student.manifest.multiply_adds_on(path)))
    limits = RunnerLimits(num_slots=max(DECODE_ROWS), capacity_tokens=512, num_threads=num_threads, library=library)
    runner = OnnxRunner(student, PrecisionPlan(many=variant), limits)
    for stage in (*student.manifest.stages(path), HEAD):
        runner.load(stage)
    row = DecodeRow(path=path.name, position=POSITION, token_id=1)
    decode_step_s = {rows: _fastest_s(runner, StepInput(decode=(row,) * rows)) for rows in DECODE_ROWS}
    chunk = PrefillChunk(slot=0, path=path.name, start=0, token_ids=tuple(range(PREFILL_TOKENS)), wants_logits=True)
    prefill_s = _fastest_s(runner, StepInput(prefill=(chunk,)))
    exact_s, cheap_s = _head_times(student, variant, num_threads, library)
    return Speeds(
        decode_step_s=decode_step_s,
        prefill_token_s=prefill_s / PREFILL_TOKENS,
        exact_head_s=exact_s,
        cheap_head_s=cheap_s,
    )


def _head_times(
    student: Student, variant: str, num_threads: int, library: Path | None
) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds of the exact and the cheap head by rows, in turns; empty without a cheap head."""
    if "cheap" not in student.manifest.heads_at(variant):
        return {}, {}
    heads = [
        HeadSession(open_session(student.whole_graph(variant, head), num_threads, library))
        for head in (HEAD, CHEAP_HEAD)
    ]
    architecture = student.manifest.architecture
    fastest: list[dict[int, float]] = [{}, {}]
    for num_rows in HEAD_ROWS:
        normed = np.random.default_rng(0).standard_normal((num_rows, architecture.hidden_size), np.float32)
        logits = np.zeros((num_rows, architecture.vocab_size), np.float32)
        for _ in range(HEAD_RUNS):
            for head, times in zip(heads, fastest, strict=True):
                started_s = time.perf_counter()
                head.run(normed, logits)
                times[num_rows] = min(times.get(num_rows, math.inf), time.perf_counter() - started_s)
    return fastest[0], fastest[1]


def _fastest_s(runner: Runner, step: StepInput) -> float:
    """The shortest of a few runs: on a shared machine the others were held up by other processes."""
    return min(step_times(runner, {"step": step}, num_rounds=NUM_RUNS, num_warm_ups=1)["step"])
