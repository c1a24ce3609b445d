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
from engines.onnx.runner import Float, OnnxRunner, RunnerLimits
from engines.onnx.sessions import HeadSession, open_session
from engines.step_times import step_times
from models.student.folder import CHEAP_HEAD, HEAD, Student
from models.student.manifest import StudentPath
from models.student.speeds import SpeedFile, Speeds, read_speeds, write_speeds

logger = logging.getLogger(__name__)

DECODE_ROWS = (1, 4, 32)
HEAD_ROWS = (1, 8, 32)
HEAD_RUNS = 5
NUM_HEAD_PLACES = 12
HEAD_TEXT = (
    "Photosynthesis is the process by which green plants, algae and some bacteria convert light energy from the sun "
    "into chemical energy stored in glucose. It takes place in the chloroplasts of plant cells, which contain a green "
    "pigment called chlorophyll. During photosynthesis, plants take in carbon dioxide from the air and water from the "
    "soil, and they release oxygen as a by-product. This process is essential for life on Earth, because it provides "
    "the oxygen that we breathe and the food that we eat."
)
"""What the heads are timed on: an answer as a model gives it. What the cheap head costs depends on how sure the model
is: the mean over `NUM_HEAD_PLACES` places, each with its shortest of `HEAD_RUNS`."""
HEAD_TEXT_TOKENS = 256
NUM_UNSURE = 8
"""Tokens at the beginning, which nothing foretells."""
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
    exact_s: dict[int, float] = {}
    cheap_s: dict[int, float] = {}
    if "cheap" in student.manifest.heads_at(variant):
        exact_s, cheap_s = _head_times(student, variant, _final_states(student, runner, path), num_threads, library)
    return Speeds(
        decode_step_s=decode_step_s,
        prefill_token_s=prefill_s / PREFILL_TOKENS,
        exact_head_s=exact_s,
        cheap_head_s=cheap_s,
    )


def _final_states(student: Student, runner: OnnxRunner, path: StudentPath) -> Float:
    """The path's normed states over an ordinary answer. Shapes: returns [tokens, hidden_size]."""
    hidden = runner.embed(student.tokenizer.encode(HEAD_TEXT)[:HEAD_TEXT_TOKENS])
    for stage in student.manifest.stages(path):
        hidden = runner.run_stage(stage, hidden, slot=0, start=0, width=path.width)
    return hidden[0, NUM_UNSURE:]


def _head_times(
    student: Student, variant: str, states: Float, num_threads: int, library: Path | None
) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds of the exact and the cheap head by rows, in turns. Shapes: states [tokens, hidden_size]."""
    heads = [
        HeadSession(open_session(student.whole_graph(variant, head), num_threads, library))
        for head in (HEAD, CHEAP_HEAD)
    ]
    found: list[dict[int, float]] = [{}, {}]
    for num_rows in HEAD_ROWS:
        logits = np.zeros((num_rows, student.manifest.architecture.vocab_size), np.float32)
        for first in np.linspace(0, len(states) - 1, NUM_HEAD_PLACES, dtype=int):
            normed = states[(np.arange(num_rows) + first) % len(states)]
            for times, seconds in zip(found, _fastest_in_turns(heads, normed, logits), strict=True):
                times[num_rows] = times.get(num_rows, 0.0) + seconds / NUM_HEAD_PLACES
    return found[0], found[1]


def _fastest_in_turns(heads: Sequence[HeadSession], normed: Float, logits: Float) -> list[float]:
    """Seconds of each head's shortest run. Shapes: normed [rows, hidden_size], logits [rows, vocab]."""
    fastest = [math.inf] * len(heads)
    for _ in range(HEAD_RUNS):
        for index, head in enumerate(heads):
            started_s = time.perf_counter()
            head.run(normed, logits)
            fastest[index] = min(fastest[index], time.perf_counter() - started_s)
    return fastest


def _fastest_s(runner: Runner, step: StepInput) -> float:
    """The shortest of a few runs: on a shared machine the others were held up by other processes."""
    return min(step_times(runner, {"step": step}, num_rounds=NUM_RUNS, num_warm_ups=1)["step"])
