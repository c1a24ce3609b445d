"""A runner that proves its KV, engines on it, and tiny real students, built once per session.

The fake's next token depends on the path and on every KV entry of the sequence at its place, and slots that nobody
should read hold noise: one entry that was lost, moved wrongly or restored in the wrong place changes the text.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer as Backend

from engines.config import EngineConfig
from engines.contract import Block, PrefillChunk, StepInput
from engines.loop.module_engine import ModuleEngine
from engines.sampler import Sampler
from engines.sequence import Finish, GenerationRequest, SamplingParams, SequenceEvent, new_sequence
from models.architecture import Architecture
from models.building.build import build_student
from models.reference import ReferenceDecoder
from models.sources.source import open_source
from models.student.cut import exits_of, parse_modules, paths_of
from models.student.folder import HEAD, Student
from models.student.manifest import FORMAT_VERSION, HeadKind, Manifest
from models.tokenizer import Tokenizer, TokenizerSettings

Words = npt.NDArray[np.uint64]

VOCAB_SIZE = 320
EOS = 2
CAPACITY_TOKENS = 192
ENTRY_BYTES = 8
WAIT_S = 60.0


def mixed(values: Words) -> Words:
    """A hash of every element (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


PLACES = mixed(np.arange(1, CAPACITY_TOKENS + 64, dtype=np.uint64)) | np.uint64(1)
TOKENS = mixed(np.arange(1000, 1000 + VOCAB_SIZE, dtype=np.uint64))

NUM_FREQUENT = 40
"""Tokens below this one are always exact in what the fake's cheap head says."""
NUM_CANDIDATES = 12


def cheap_logits(exact: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """As a cheap head: frequent tokens and the best by a preview are exact, and the rest keep the preview.

    Shapes: exact and result [vocab].
    """
    noise = (mixed(exact.view(np.uint32).astype(np.uint64) + TOKENS) >> np.uint64(40)).astype(np.float32)
    preview = exact + noise / np.float32(1 << 23) - np.float32(1.0)
    best = np.argsort(-preview, kind="stable")[:NUM_CANDIDATES]
    preview[:NUM_FREQUENT], preview[best] = exact[:NUM_FREQUENT], exact[best]
    return preview


class FakeRunner:
    """`Runner` with one word of KV per token and stage.

    `written` is how far a slot was written since it was last released whole.
    Faults: `fail_next` raises in that many passes, `fail_exact` in that many of the exact head alone; `gates` hold
    `load` of a stage back until they are set.
    """

    def __init__(self, manifest: Manifest, num_slots: int) -> None:
        self._manifest = manifest
        self._depths = manifest.path_ranks
        self._noise = itertools.count(1 << 40)
        stages = [stage for stage in manifest.stage_order() if manifest.num_layers_in(stage)]
        self.kv = {name: np.zeros((num_slots, len(PLACES)), np.uint64) for name in stages}
        for entries in self.kv.values():
            self._spoil(entries)
        self.written = [0] * num_slots
        self.fail_next = 0
        self.fail_exact = 0
        self.exact_calls: list[list[int]] = []
        self._exact: list[npt.NDArray[np.float32]] = []
        self.gates: dict[str, threading.Event] = {}
        self.load_errors: dict[str, Exception] = {}
        self.loaded: list[str] = []
        self.num_moves = 0
        self.most_rows_scored = 0
        self._kept: dict[int, PrefillChunk] = {}
        self.max_step_tokens = 0
        self.forward_calls: list[StepInput] = []
        self.on_forward: Callable[[], None] = lambda: None

    def load(self, stage: str) -> None:
        if stage in self.gates:
            assert self.gates[stage].wait(WAIT_S)
        if stage in self.load_errors:
            raise self.load_errors[stage]
        self.loaded.append(stage)

    def forward(self, step: StepInput) -> npt.NDArray[np.float32]:
        self.forward_calls.append(step)
        self.on_forward()
        self._check(step)
        if self.fail_next:
            self.fail_next -= 1
            raise RuntimeError("the fake runner was told to fail")
        self._kept = {chunk.slot: chunk for chunk in step.prefill if chunk.keeps_states}
        rows = [np.zeros(VOCAB_SIZE, np.float32)] * len(step.decode)
        heads: list[HeadKind] = [row.head for row in step.decode]
        for slot, row in enumerate(step.decode):
            if row.path is None:
                self._spoil_tail(slot, row.position, 1)
            else:
                rows[slot] = self._run(slot, row.path, row.position, (row.token_id,))
        for chunk in step.prefill:
            logits = self._run(chunk.slot, chunk.path, chunk.start, chunk.token_ids)
            # A real pass over padded prompts leaves garbage after the shorter ones.
            self._spoil_tail(chunk.slot, chunk.start + len(chunk.token_ids), 3)
            if chunk.wants_logits:
                rows.append(logits)
                heads.append(chunk.head)
        self._exact = rows
        shown = [row if head == "exact" else cheap_logits(row) for row, head in zip(rows, heads, strict=True)]
        return np.stack(shown) if shown else np.zeros((0, VOCAB_SIZE), np.float32)

    def exact_logits(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        self.exact_calls.append(list(rows))
        if self.fail_exact:
            self.fail_exact -= 1
            raise RuntimeError("the fake runner was told to fail in its exact head")
        return np.stack([self._exact[row] for row in rows])

    def position_logits(self, slot: int, first: int, end: int) -> npt.NDArray[np.float32]:
        chunk = self._kept[slot]
        self.most_rows_scored = max(self.most_rows_scored, end - first)
        last = chunk.start + len(chunk.token_ids)
        assert chunk.start <= first < end <= last, "logits of a position that was not in the step"
        # Writing a chunk's tokens again gives the same KV, and the logits of its last token.
        rows = [
            self._run(slot, chunk.path, chunk.start, chunk.token_ids[: position + 1 - chunk.start])
            for position in range(first, end)
        ]
        return np.stack(rows)

    def move_slot(self, source: int, target: int, path: str, num_tokens: int) -> None:
        self.num_moves += 1
        for stage in self._kv_stages(path):
            self.kv[stage][target, :num_tokens] = self.kv[stage][source, :num_tokens]
        for entries in self.kv.values():
            self._spoil(entries[source])
        self.written[target] = max(self.written[target], num_tokens)

    def read_block(self, stage: str, slot: int, start: int, num_tokens: int) -> Block:
        return self.kv[stage][slot, start : start + num_tokens].copy()

    def write_block(self, stage: str, slot: int, start: int, block: Block) -> None:
        self.kv[stage][slot, start : start + len(block)] = block
        self.written[slot] = max(self.written[slot], start + len(block))

    def release_slot(self, slot: int, num_tokens: int) -> None:
        for entries in self.kv.values():
            self._spoil(entries[slot, :num_tokens])
        if num_tokens >= self.written[slot]:
            self.written[slot] = 0

    @property
    def skips_padding(self) -> bool:
        return True

    def kv_bytes_per_token(self, stage: str) -> int:
        return ENTRY_BYTES if stage in self.kv else 0

    def _kv_stages(self, path: str) -> list[str]:
        return [stage for stage in self._manifest.stages(self._manifest.path(path)) if stage in self.kv]

    def _run(self, slot: int, path: str, start: int, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        hidden = TOKENS[list(token_ids)]
        end = start + len(token_ids)
        self.written[slot] = max(self.written[slot], end)
        for stage in self._kv_stages(path):
            entries = self.kv[stage][slot]
            entries[start:end] = mixed(hidden)
            sums = np.cumsum(entries[:end] * PLACES[:end], dtype=np.uint64)[start:end]
            hidden = mixed(sums + PLACES[start:end] + np.uint64(len(stage)))
        last = hidden[-1]
        logits = (mixed(TOKENS + last) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 21)
        logits[EOS] += 1.5
        return logits

    def _check(self, step: StepInput) -> None:
        ranks = [self._depths[row.path] for row in step.decode if row.path is not None]
        assert ranks == sorted(ranks), "decode rows are not sorted deepest first"
        paths = [row.path for row in step.decode if row.path] + [chunk.path for chunk in step.prefill]
        needed = {HEAD, *(stage for path in paths for stage in self._manifest.stages(self._manifest.path(path)))}
        assert needed <= set(self.loaded), "a stage ran before it was loaded"
        self.max_step_tokens = max(self.max_step_tokens, sum(len(chunk.token_ids) for chunk in step.prefill))

    def _spoil_tail(self, slot: int, start: int, num_tokens: int) -> None:
        for entries in self.kv.values():
            self._spoil(entries[slot, start : start + num_tokens])

    def _spoil(self, entries: Words) -> None:
        entries[...] = mixed(np.full(entries.shape, next(self._noise), np.uint64))


def fake_manifest() -> Manifest:
    modules = parse_modules("knowledge:2,reasoning:1,adapter:1", 4)
    architecture = Architecture(
        family="llama",
        num_layers=4,
        hidden_size=8,
        intermediate_size=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        vocab_size=VOCAB_SIZE,
        max_context_tokens=CAPACITY_TOKENS,
        norm_eps=1e-5,
        rope_theta=1e4,
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        name="fake",
        source="none",
        source_sha256="",
        licence="unknown",
        architecture=architecture,
        modules=modules,
        exits=exits_of(modules),
        paths=paths_of(modules),
        tasks={},
        depth_rules=(),
        variants=(),
    )


class Listener:
    """Everything an engine published, by sequence."""

    def __init__(self) -> None:
        self.events: dict[str, list[SequenceEvent]] = {}
        self._changed = threading.Condition()

    def publish(self, events: Sequence[SequenceEvent]) -> None:
        with self._changed:
            for event in events:
                self.events.setdefault(event.sequence_id, []).append(event)
            self._changed.notify_all()

    def finish(self, id: str, wait_s: float = WAIT_S) -> Finish:
        """The one terminal event of a sequence, waited for; no event may follow it."""
        with self._changed:
            ended = self._changed.wait_for(lambda: any(event.finish for event in self.events.get(id, ())), wait_s)
        assert ended, f"{id} has not ended"
        finishes = [event.finish for event in self.events[id] if event.finish is not None]
        assert len(finishes) == 1
        assert self.events[id][-1].finish is finishes[0]
        return finishes[0]

    def tokens(self, id: str) -> list[int]:
        return [token for event in self.events.get(id, ()) for token in event.token_ids]

    def text(self, id: str) -> str:
        return "".join(event.text for event in self.events.get(id, ()))


class FakeEngine(Listener):
    """An engine on a `FakeRunner`.

    Driven by hand (`steps`), or by its own threads (`start`). Prompts are cut by tokens alone, not by time, so that a
    busy machine changes no step.
    """

    def __init__(self, student: Student, head: HeadKind = "exact", **settings: Any) -> None:
        super().__init__()
        self.student = student
        self.head = head
        self.config = EngineConfig(**{"busy_step_ms": 0, **settings})
        self.runner = FakeRunner(student.manifest, self.config.max_running)
        self.engine = ModuleEngine(
            student, self.runner, self.config, capacity_tokens=CAPACITY_TOKENS, variant="fake", head=head
        )

    def start(self) -> None:
        self.engine.start(self.publish)

    def load_by_hand(self) -> None:
        self.engine._publish = self.publish
        self.engine._loading.run()

    def step_until_idle(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.engine.step():
                return
        pytest.fail(f"still busy after {limit} steps: a sequence is stuck")

    def submit(self, id: str, prompt: Sequence[int] = (5, 6, 7), path: str = "full", **sampling: Any) -> None:
        self.engine.submit(self.request(id, prompt, path, **sampling))

    @staticmethod
    def request(id: str, prompt: Sequence[int], path: str, **sampling: Any) -> GenerationRequest:
        fields = ("while_loading", "cache_salt", "needs_exact_head", "scored_from", "in_background", "priority")
        options = {name: sampling.pop(name) for name in fields if name in sampling}
        params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **sampling})
        return GenerationRequest(id=id, prompt_token_ids=tuple(prompt), path=path, sampling=params, **options)

    def alone(self, request: GenerationRequest) -> list[int]:
        """The tokens of a request run by itself, token by token, without engine, scheduler or cache."""
        runner = FakeRunner(self.student.manifest, 1)
        runner.loaded = [HEAD, *self.student.manifest.stage_order()]
        token_bytes = self.student.tokenizer.token_bytes
        sampler, sequence = Sampler(token_bytes), new_sequence(request, token_bytes, self.head)
        sampling = request.sampling
        while sequence.num_completion_tokens < sampling.max_tokens:
            start = sequence.num_computed_tokens
            ids = tuple(sequence.token_ids[start:])
            chunk = PrefillChunk(
                slot=0, path=request.path, start=start, token_ids=ids, wants_logits=True, head=sequence.head
            )
            logits = runner.forward(StepInput(prefill=(chunk,)))
            token = sampler.sample(logits, [sequence], runner.exact_logits)[0].token_id
            sequence.num_computed_tokens = sequence.num_tokens
            sequence.token_ids.append(token)
            if sequence.matcher is not None:
                sequence.matcher.advance(token)
            is_finished = sequence.matcher is not None and sequence.matcher.is_finished
            if is_finished or (token == EOS and not sampling.ignore_eos):
                break
        generated = sequence.token_ids[sequence.num_prompt_tokens :]
        return generated[:-1] if generated[-1] == EOS and not sampling.ignore_eos else generated


@pytest.fixture(scope="session")
def fake_student(tiny_tokenizer_json: str) -> Student:
    settings = TokenizerSettings(eos_token_ids=(EOS,))
    tokenizer = Tokenizer(Backend.from_str(tiny_tokenizer_json), settings, None)
    return Student(folder=Path("nowhere"), manifest=fake_manifest(), tokenizer=tokenizer)


@pytest.fixture
def make_engine(fake_student: Student) -> Iterator[Callable[..., FakeEngine]]:
    """`make_engine(**settings)`; engines that were started are stopped at the end."""
    made: list[FakeEngine] = []

    def make(**settings: Any) -> FakeEngine:
        made.append(FakeEngine(fake_student, **settings))
        return made[-1]

    yield make
    for fake in made:
        for gate in fake.runner.gates.values():
            gate.set()
        fake.engine.stop(0)
        assert not fake.engine._thread.is_alive()


@pytest.fixture
def make_listener() -> type[Listener]:
    return Listener


@dataclass(slots=True, kw_only=True, frozen=True)
class TinyStudent:
    """A built student of 4 layers, one or two in a module, and the torch decoder of the same weights."""

    student: Student
    reference: ReferenceDecoder
    source: Path


@dataclass(slots=True)
class _Built:
    folder: Path
    students: dict[str, TinyStudent] = field(default_factory=dict)


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> _Built:
    return _Built(tmp_path_factory.mktemp("students"))


@pytest.fixture
def tiny_student(_built: _Built, tiny_source: Any) -> Callable[..., TinyStudent]:
    """`tiny_student(family, precisions, **config)`, the same one for the same arguments."""

    def make(family: str, precisions: tuple[str, ...] = ("fp32",), **config: Any) -> TinyStudent:
        key = f"{family} {precisions} {sorted(config.items())}"
        if key not in _built.students:
            source = tiny_source(family, **config)
            out = _built.folder / str(len(_built.students))
            build_student(source, out, modules="knowledge:1,reasoning:2,adapter:1", precisions=precisions)
            reference = ReferenceDecoder(open_source(source))
            _built.students[key] = TinyStudent(student=Student.open(out), reference=reference, source=source)
        return _built.students[key]

    return make
