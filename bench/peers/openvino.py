"""OpenVINO GenAI: its continuous-batching pipeline, which reads the GGUF directly.

`LLMPipeline` was measured slower with this model (125 against 137 tokens/s on one stream), so one pipeline serves all.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.protocol import Generate, Generated, Score, Scored, Setup, Task
from bench.subject import Measure, SubjectAbsent

KV_CACHE_GB = 2
BATCH_TOKENS = 512


class OpenVino:
    def open(self, setup: Setup) -> str:
        try:
            import openvino  # type: ignore[import-not-found]
            import openvino_genai
        except ImportError:
            raise SubjectAbsent("openvino_genai is not installed: pip install 'fenhe[bench]'") from None
        if setup.gguf is None:
            raise SubjectAbsent("OpenVINO GenAI needs the GGUF file: give --gguf FILE")
        self._tensor: Any = openvino.Tensor
        self._genai: Any = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = KV_CACHE_GB
        scheduler.max_num_batched_tokens = BATCH_TOKENS
        scheduler.enable_prefix_caching = False
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
            setup.gguf, scheduler, "CPU", {"INFERENCE_NUM_THREADS": setup.num_threads}
        )
        return str(openvino_genai.__version__)

    @property
    def measures(self) -> Mapping[type[Task], Measure]:
        return {Generate: self.generate, Score: self.score}

    def close(self) -> None:
        """The process ends here; the system takes its memory back."""

    def generate(self, task: Generate) -> Generated:
        prompts = [self._ids(prompt) for prompt in task.prompts]
        sampling = self._sampling(task.num_tokens)
        started = time.perf_counter()
        results = self._pipeline.generate(prompts, [sampling] * len(prompts))
        total_s = time.perf_counter() - started
        num_tokens = sum(len(result.m_generation_ids[0]) for result in results)
        if num_tokens != task.num_tokens * len(prompts):
            raise RuntimeError(f"OpenVINO made {num_tokens} tokens")
        first_s = min(result.perf_metrics.get_ttft().mean for result in results) / 1000.0
        return Generated(
            num_prompt_tokens=sum(len(prompt) for prompt in task.prompts),
            num_tokens=num_tokens,
            first_s=total_s if task.num_tokens == 1 else first_s,
            total_s=total_s,
        )

    def score(self, task: Score) -> Scored:
        """`echo` with `logprobs` gives the log-probability of every prompt token; the first one is a placeholder."""
        sampling = self._sampling(1)
        sampling.echo = True
        sampling.logprobs = 1
        handles = [self._pipeline.add_request(i, self._ids(text), sampling) for i, text in enumerate(task.texts)]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        nats = []
        for text, handle in zip(task.texts, handles, strict=True):
            logprobs = handle.read_all()[0].generated_log_probs
            nats.append(-float(np.sum(np.asarray(logprobs[1 : len(text)], dtype=np.float64))))
        return Scored(nats=tuple(nats), num_tokens=tuple(len(text) - 1 for text in task.texts))

    def _ids(self, tokens: Sequence[int]) -> Any:
        return self._tensor(np.asarray([tokens], dtype=np.int64))

    def _sampling(self, num_tokens: int) -> Any:
        sampling = self._genai.GenerationConfig()
        sampling.max_new_tokens = num_tokens
        sampling.ignore_eos = True
        sampling.do_sample = False
        sampling.apply_chat_template = False
        return sampling
