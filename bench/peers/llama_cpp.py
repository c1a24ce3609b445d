"""llama.cpp through the C bindings of llama-cpp-python: the plain `llama_batch` loop, with flash attention.

Measured faster than `Llama.generate`, whose sampler chain runs in Python; greedy choice here is one argmax a row.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.losses import nats_of
from bench.protocol import Generate, Generated, Score, Scored, Setup, Task
from bench.subject import Measure, SubjectAbsent

BATCH_TOKENS = 512
CONTEXT_TOKENS = 1024
FLASH_ATTENTION = 1


@dataclass(slots=True, frozen=True)
class Row:
    token_id: int
    position: int
    sequence: int
    wants_logits: bool


class LlamaCpp:
    """One context at a time: for a single sequence or for as many as a job has, each with its own KV stream."""

    def open(self, setup: Setup) -> str:
        try:
            import llama_cpp
        except ImportError:
            raise SubjectAbsent("llama_cpp is not installed: pip install 'fenhe[bench]'") from None
        if setup.gguf is None:
            raise SubjectAbsent("llama.cpp needs the GGUF file: give --gguf FILE")
        self._api: Any = llama_cpp.llama_cpp
        self._silence()
        self._api.llama_backend_init()
        self._num_threads = setup.num_threads
        self._model = self._api.llama_model_load_from_file(setup.gguf.encode(), self._api.llama_model_default_params())
        if not self._model:
            raise SubjectAbsent(f"llama.cpp cannot read {setup.gguf}")
        self._vocab_size = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        self._batch = self._api.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._context: Any = None
        self._num_sequences = 0
        return str(llama_cpp.__version__)

    @property
    def measures(self) -> Mapping[type[Task], Measure]:
        return {Generate: self.generate, Score: self.score}

    def close(self) -> None:
        """The process ends here; the system takes its memory back."""

    def generate(self, task: Generate) -> Generated:
        self._use_context(len(task.prompts))
        started = time.perf_counter()
        tokens = self._prefill(task.prompts)
        first_s = time.perf_counter() - started
        positions = [len(prompt) for prompt in task.prompts]
        for step in range(task.num_tokens - 1):
            rows = [Row(token, positions[i] + step, i, True) for i, token in enumerate(tokens)]
            tokens = self._decode(rows)
        return Generated(
            num_prompt_tokens=sum(positions),
            num_tokens=task.num_tokens * len(task.prompts),
            first_s=first_s,
            total_s=time.perf_counter() - started,
        )

    def score(self, task: Score) -> Scored:
        nats = []
        for text in task.texts:
            self._use_context(1)
            self._run([Row(token, position, 0, True) for position, token in enumerate(text)])
            logits = np.stack([self._logits(i) for i in range(len(text) - 1)])
            nats.append(nats_of(logits, text[1:]))
        return Scored(nats=tuple(nats), num_tokens=tuple(len(text) - 1 for text in task.texts))

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> list[int]:
        """Whole prompts, as many in a batch as fit; returns the first token of each."""
        tokens: list[int] = []
        pending: list[Row] = []
        for sequence, prompt in enumerate(prompts):
            if len(pending) + len(prompt) > BATCH_TOKENS:
                tokens += self._decode(pending)
                pending = []
            last = len(prompt) - 1
            pending += [Row(token, i, sequence, i == last) for i, token in enumerate(prompt)]
        return tokens + self._decode(pending)

    def _decode(self, rows: list[Row]) -> list[int]:
        self._run(rows)
        return [int(self._logits(i).argmax()) for i, row in enumerate(rows) if row.wants_logits]

    def _run(self, rows: list[Row]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i] = row.token_id
            batch.pos[i] = row.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row.sequence
            batch.logits[i] = row.wants_logits
        code = self._api.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code} for {len(rows)} rows")

    def _logits(self, row: int) -> npt.NDArray[np.float32]:
        pointer = self._api.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))

    def _use_context(self, num_sequences: int) -> None:
        """An empty context for this many sequences."""
        if num_sequences != self._num_sequences:
            if self._context is not None:
                self._api.llama_free(self._context)
            self._context = self._api.llama_init_from_model(self._model, self._parameters(num_sequences))
            if not self._context:
                raise RuntimeError(f"llama.cpp made no context for {num_sequences} sequences")
            self._num_sequences = num_sequences
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _parameters(self, num_sequences: int) -> Any:
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = CONTEXT_TOKENS * num_sequences
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_seq_max = num_sequences
        parameters.n_threads = parameters.n_threads_batch = self._num_threads
        parameters.kv_unified = False
        parameters.flash_attn_type = FLASH_ATTENTION
        parameters.no_perf = True
        return parameters

    def _silence(self) -> None:
        self._log = self._api.llama_log_callback(lambda *_: None)  # kept: the library holds only a pointer
        self._api.llama_log_set(self._log, None)
