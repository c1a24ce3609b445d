"""fenhe in process: the engine through its contract, and its runner where single forward passes are measured."""

import gc
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.command import installed_version
from bench.engines.cases import REFERENCE_PRECISION
from bench.engines.depth_steps import decode_step, prefix_paths, uniform_steps
from bench.engines.progress import Progress, wait_until_loaded
from bench.losses import nats_of
from bench.protocol import Generate, Generated, MixedStep, Score, Scored, Setup, Stall, Stalled, StepTimes, Task
from bench.subject import Measure, SubjectAbsent
from engines.build import build_engine, build_runner
from engines.config import EngineConfig
from engines.contract import DecodeRow, Engine, PrefillChunk, Runner, StepInput
from engines.sequence import GenerationRequest, SamplingParams, SequenceEvent
from engines.step_times import step_times
from models.errors import EngineFault
from models.sources.fetch import cache_folder
from models.student.folder import HEAD, Student


class Fenhe:
    """Our engine and runner on one student. Only one of them is in memory at a time."""

    def open(self, setup: Setup) -> str:
        if setup.student is None:
            raise SubjectAbsent("fenhe needs a student folder: give --student DIR")
        self._student = Student.open(Path(setup.student))
        self._reference = Path(setup.reference) if setup.reference else None
        self._num_threads = setup.num_threads
        self._precision = setup.precision
        self._engine: Engine | None = None
        self._progress = Progress(())
        self._num_jobs = 0
        self._running_engine()
        return installed_version()

    @property
    def measures(self) -> Mapping[type[Task], Measure]:
        return {
            Generate: self.generate,
            Score: self.score,
            MixedStep: self.mixed_step,
            Stall: self.stall,
        }

    def close(self) -> None:
        if getattr(self, "_engine", None) is not None:
            self._stop_engine()

    def generate(self, task: Generate) -> Generated:
        engine = self._running_engine()
        requests = self._requests(task.prompts, task.num_tokens, task.path)
        progress = self._watch(requests)
        started = time.perf_counter()
        for request in requests:
            engine.submit(request)
        progress.wait_all()
        if progress.num_cached_tokens:
            raise EngineFault(f"{progress.num_cached_tokens} prompt tokens came from the prefix cache")
        times = progress.token_times_s.values()
        return Generated(
            num_prompt_tokens=sum(len(prompt) for prompt in task.prompts),
            num_tokens=sum(len(one) for one in times),
            first_s=min(one[0] for one in times) - started,
            total_s=max(one[-1] for one in times) - started,
        )

    def stall(self, task: Stall) -> Stalled:
        engine = self._running_engine()
        stream, intruder = self._requests([task.prompt], len(task.intruder), None) + self._requests(
            [task.intruder], 1, None
        )
        progress = self._watch([stream, intruder])
        engine.submit(stream)
        seen = progress.token_times_s[stream.id]
        progress.wait(lambda: len(seen) >= task.num_quiet_tokens)
        arrival = time.perf_counter()
        engine.submit(intruder)
        progress.wait(lambda: progress.is_finished(intruder.id))
        first = progress.token_times_s[intruder.id][0]
        engine.abort(stream.id)
        progress.wait_all()
        return Stalled(
            quiet_gaps_s=gaps_of([moment for moment in seen if moment <= arrival]),
            loaded_gaps_s=gaps_between(seen, arrival, first),
            intruder_first_s=first - arrival,
        )

    def score(self, task: Score) -> Scored:
        runner = self._runner(precision=task.precision or self._precision, max_running=task.num_rows)
        order = sorted(range(len(task.texts)), key=lambda i: -len(task.texts[i]))
        nats = [0.0] * len(task.texts)
        for start in range(0, len(order), task.num_rows):
            self._score_group(runner, task.texts, order[start : start + task.num_rows], nats)
        return Scored(nats=tuple(nats), num_tokens=tuple(len(text) - 1 for text in task.texts))

    def _score_group(
        self, runner: Runner, texts: Sequence[tuple[int, ...]], group: list[int], nats: list[float]
    ) -> None:
        """Feed texts side by side, longest first, so that the unfinished ones are always the first rows."""
        path = self._student.manifest.full_path.name
        for position in range(len(texts[group[0]]) - 1):
            running = [i for i in group if position < len(texts[i]) - 1]
            rows = [DecodeRow(path=path, position=position, token_id=texts[i][position]) for i in running]
            logits = runner.forward(StepInput(decode=tuple(rows)))
            for row, i in enumerate(running):
                nats[i] += nats_of(logits[row : row + 1], texts[i][position + 1 : position + 2])

    def mixed_step(self, task: MixedStep) -> StepTimes:
        paths = prefix_paths(self._student)
        rows_per_path = task.num_rows // len(paths)
        runner = self._runner(precision=self._precision, max_running=task.num_rows)
        self._fill_slots(runner, task.prompt, task.num_rows)
        steps = uniform_steps(paths, rows_per_path, len(task.prompt))
        mixed = [path for path in reversed(paths) for _ in range(rows_per_path)]
        steps["mixed"] = decode_step(mixed, len(task.prompt))
        times = step_times(runner, steps, num_rounds=task.repeats)
        seconds = {name: statistics.median(values) for name, values in times.items()}
        return StepTimes(
            paths=tuple(paths),
            rows_per_path=rows_per_path,
            mixed_s=seconds.pop("mixed"),
            uniform_s=seconds,
        )

    def _fill_slots(self, runner: Runner, prompt: tuple[int, ...], num_rows: int) -> None:
        full = self._student.manifest.full_path.name
        for slot in range(num_rows):
            chunk = PrefillChunk(slot=slot, path=full, start=0, token_ids=prompt, wants_logits=False)
            runner.forward(StepInput(prefill=(chunk,)))

    def _running_engine(self) -> Engine:
        if self._engine is None:
            self._engine = build_engine(self._student, self._config(self._precision, 32))
            self._engine.start(self._publish)
            wait_until_loaded(self._engine)
        return self._engine

    def _publish(self, events: Sequence[SequenceEvent]) -> None:
        self._progress.add(events)

    def _stop_engine(self) -> None:
        if self._engine is not None:
            self._engine.stop(grace_s=0.0)
            self._engine = None
            gc.collect()

    def _runner(self, *, precision: str, max_running: int) -> Runner:
        self._stop_engine()
        student = self._student
        if precision == REFERENCE_PRECISION and self._reference is not None:
            student = Student.open(self._reference)
        runner = build_runner(student, self._config(precision, max_running))
        for stage in (*student.manifest.stage_order(), HEAD):
            runner.load(stage)
        return runner

    def _config(self, precision: str, max_running: int) -> EngineConfig:
        return EngineConfig(
            max_running=max_running,
            precision=precision,
            num_threads=self._num_threads,
            native_folder=cache_folder(os.environ) / "native",
        )

    def _requests(
        self, prompts: Sequence[tuple[int, ...]], num_tokens: int, path: str | None
    ) -> list[GenerationRequest]:
        self._num_jobs += 1
        return [
            GenerationRequest(
                id=f"job{self._num_jobs}-{i}",
                prompt_token_ids=prompt,
                path=path or self._student.manifest.full_path.name,
                sampling=SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True),
            )
            for i, prompt in enumerate(prompts)
        ]

    def _watch(self, requests: Sequence[GenerationRequest]) -> Progress:
        self._progress = Progress([request.id for request in requests])
        return self._progress


def gaps_of(moments: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(gap) for gap in np.diff(moments))


def gaps_between(moments: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """Gaps that overlap the time from `start` to `end`."""
    return tuple(after - before for before, after in itertools.pairwise(moments) if after > start and before < end)
