"""vLLM with our paths, and vLLM itself on the full path's plain checkpoint: the same weights, the same settings."""

import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.protocol import Follow, Followed, Setup, Task
from bench.subject import Measure, SubjectAbsent

CONTEXT_TOKENS = 1024
MAX_SEQUENCES = 32
KV_BYTES = 2 << 30
EAGER = "eager"
"""In `Setup.precision` behind the element type, such as `bfloat16,eager`: nothing is compiled."""


class _Vllm:
    """`_model` makes the options that tell the two subjects apart."""

    def open(self, setup: Setup) -> str:
        # vLLM reads these when it is imported; the process is the subject's own
        cores = sorted(os.sched_getaffinity(0))[: setup.num_threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            import vllm
        except ImportError:
            raise SubjectAbsent("vllm is not installed: `make serve-vllm` makes an environment that has it") from None
        if setup.student is None:
            raise SubjectAbsent("a student folder is needed: --student DIR")
        dtype, _, mode = setup.precision.partition(",")
        self._folder = Path(tempfile.mkdtemp(prefix="fenhe-bench-vllm-"))
        self._vllm = vllm
        options = {
            "dtype": dtype,
            "enforce_eager": mode == EAGER,
            "max_model_len": CONTEXT_TOKENS,
            "max_num_seqs": MAX_SEQUENCES,
            "enable_prefix_caching": False,
            "kv_cache_memory_bytes": KV_BYTES,
            "generation_config": "vllm",
        }
        self._engine: Any = vllm.LLM(**{**options, **self._model(Path(setup.student), self._folder)})
        return str(vllm.__version__)

    @property
    def measures(self) -> Mapping[type[Task], Measure]:
        return {Follow: self.follow}

    def close(self) -> None:
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder, ignore_errors=True)

    def follow(self, task: Follow) -> Followed:
        """vLLM's own loop, step by step."""
        engine = self._engine.llm_engine
        paths = {str(number): path for number, path in enumerate(task.paths)}
        gaps: dict[str, list[float]] = defaultdict(list)
        newest: dict[str, float] = {}
        num_tokens = 0
        started_s = time.perf_counter()
        for number, (prompt, path) in enumerate(zip(task.prompts, task.paths, strict=True)):
            engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, self._sampling(task.num_tokens, path))
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now_s = time.perf_counter()
            for output in outputs:
                id = output.request_id.partition("-")[0]
                num_tokens += len(output.outputs[0].token_ids)
                if id in newest:
                    gaps[paths[id]].append(now_s - newest[id])
                newest[id] = now_s
        total_s = time.perf_counter() - started_s
        return Followed(
            num_tokens=num_tokens, total_s=total_s, gaps_s={path: tuple(found) for path, found in gaps.items()}
        )

    def _sampling(self, num_tokens: int, path: str) -> Any:
        from vllm.sampling_params import RequestOutputKind

        return self._vllm.SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            max_tokens=num_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=self._arguments(path),
        )

    def _model(self, student: Path, folder: Path) -> dict[str, Any]:
        raise NotImplementedError

    def _arguments(self, path: str) -> dict[str, Any] | None:
        raise NotImplementedError


class StockVllm(_Vllm):
    """vLLM as it is."""

    def _model(self, student: Path, folder: Path) -> dict[str, Any]:
        from engines.vllm.export import export_path
        from models.student.manifest import read_manifest

        plain = folder / "full"
        export_path(student, read_manifest(student).full_path.name, plain)
        return {"model": str(plain), "skip_tokenizer_init": True}

    def _arguments(self, path: str) -> dict[str, Any] | None:
        return None


class PathVllm(_Vllm):
    """vLLM with fenhe's plug-in, weights from the student's folder; the exact head, as vLLM itself has."""

    def _model(self, student: Path, folder: Path) -> dict[str, Any]:
        from engines.config import EngineConfig
        from engines.vllm.options import (
            CPU_COMPILATION,
            CPU_WORKER,
            SCHEDULER,
            student_form,
            write_model_folder,
        )
        from engines.vllm.plugin import register
        from models.student.folder import Student

        register()
        opened = Student.open(student)
        described = folder / "student"
        described.mkdir()
        write_model_folder(opened, student_form(opened, EngineConfig(head="exact")), described)
        return {
            "model": str(described),
            "skip_tokenizer_init": True,
            "load_format": "fenhe",
            "model_loader_extra_config": {"student": str(student)},
            "worker_cls": CPU_WORKER,
            "scheduler_cls": SCHEDULER,
            **CPU_COMPILATION,
        }

    def _arguments(self, path: str) -> dict[str, Any] | None:
        from engines.vllm.form import PATH_ARGUMENT

        return {PATH_ARGUMENT: path}


def spread(paths: Sequence[str], num_rows: int) -> tuple[str, ...]:
    """Rows spread evenly over paths, in turns."""
    return tuple(paths[row % len(paths)] for row in range(num_rows))
