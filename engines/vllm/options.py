"""What vLLM is started with: our settings in its words, and options of its own passed through."""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engines.config import EngineConfig
from engines.vllm.form import ARCHITECTURES, CONFIG_KEY, ServedForm, head_form, served_form
from engines.vllm.plugin import register
from models.errors import ConfigError, Problem
from models.student.folder import Student
from models.student.hugging_face_folder import write_folder
from models.student.stored_weights import StoredHead, StoredWeights

OURS = {
    "model": "the student's folder is",
    "tokenizer": "the student has its own",
    "load_format": "weights come from the student's folder",
    "model_loader_extra_config": "weights come from the student's folder",
    "worker_cls": "paths need fenhe's own",
    "scheduler_cls": "paths need fenhe's own",
    "skip_tokenizer_init": "structured output needs the tokenizer",
    "max_model_len": "set engine.max_context_tokens",
    "max_num_seqs": "set engine.max_running",
}
"""Options of vLLM that are settings of fenhe's, and what to do instead."""

CPU_WORKER = "engines.vllm.cpu.PathWorker"
CPU_COMPILATION = {"compilation_config": {"custom_ops": ["all"]}}
"""Steps that are not vLLM's own model are not compiled, and what vLLM leaves to its compiler would be slow in them."""
SCHEDULER = "engines.vllm.scheduler.PathScheduler"
ASYNC_SCHEDULER = "engines.vllm.scheduler.PathAsyncScheduler"


def student_form(student: Student, config: EngineConfig) -> ServedForm:
    """Raises: ConfigError for a student that vLLM cannot run, or a head that it has not."""
    manifest = student.manifest
    stored = StoredWeights(student)
    if config.head == "exact":
        return served_form(manifest)
    has_head = any(variant.cheap_head is not None for variant in manifest.variants)
    if manifest.cheap_head is None or not has_head:
        if config.head == "cheap":
            StoredHead(student, stored.read)  # says what to do
        return served_form(manifest)
    return served_form(manifest, head_form(StoredHead(student, stored.read), manifest.cheap_head.rank))


def write_model_folder(student: Student, form: ServedForm, folder: Path) -> None:
    """What vLLM takes for a model: configuration and tokenizer, without weights. Raises: OSError."""
    write_folder(student, folder, model_config(student, form))


def model_config(student: Student, form: ServedForm) -> dict[str, Any]:
    """What `config.json` has besides what every tool reads."""
    return {
        "architectures": [ARCHITECTURES[student.manifest.architecture.family]],
        "torch_dtype": "float32",
        CONFIG_KEY: msgspec.to_builtins(form),
    }


def option_problems(options: Mapping[str, Any], known: set[str]) -> list[Problem]:
    """What is wrong with options of vLLM's; `known` are all it has."""
    problems = []
    for name in options:
        first = name.partition(".")[0]
        if first in OURS:
            problems.append(Problem(setting=f"vllm.{name}", said=f"vllm.{name} cannot be set: {OURS[first]}"))
        elif first not in known:
            near = difflib.get_close_matches(first, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(Problem(setting=f"vllm.{name}", said=f"vllm.{name}: vLLM has no such option{hint}"))
    return problems


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as tables. Example: {"a.b": 1} is {"a": {"b": 1}}."""
    tables: dict[str, Any] = {}
    for name, value in options.items():
        *path, last = name.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return tables


def engine_arguments(
    student: Student, folder: Path, config: EngineConfig, capacity_tokens: int, options: Mapping[str, Any]
) -> Any:
    """vLLM's `EngineArgs` for the model in `folder`. Imports vllm.

    Raises: ConfigError for options that vLLM does not have, or refuses.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    register()  # also where the entry points of another checkout's installation hide ours
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    if problems := option_problems(options, known):
        raise ConfigError(*problems)
    is_cpu = current_platform.is_cpu()
    ours = {
        "model": str(folder),
        "load_format": "fenhe",
        "model_loader_extra_config": {"student": str(student.folder)},
        "generation_config": "vllm",
        "max_model_len": capacity_tokens,
        "max_num_seqs": config.max_running,
        "max_num_batched_tokens": max(config.step_tokens, config.max_running),
        "max_logprobs": -1,
        "structured_outputs_config": {"backend": "guidance"},
        "dtype": "float32" if is_cpu else "auto",
        "scheduler_cls": SCHEDULER if is_cpu else ASYNC_SCHEDULER,
    }
    if is_cpu:
        ours |= {"worker_cls": CPU_WORKER, "kv_cache_memory_bytes": config.kv_bytes, **CPU_COMPILATION}
    if not config.prefix_cache_bytes:
        ours["enable_prefix_caching"] = False
    try:
        return EngineArgs(**{**ours, **nested(options)})
    except Exception as error:  # pydantic's, of any kind
        raise ConfigError(f"vLLM refuses its options: {error}") from error


def set_environment(config: EngineConfig) -> None:
    """vLLM reads these when it is imported or starts a process, and has no other way to be told."""
    cores = sorted(os.sched_getaffinity(0))
    bound = ",".join(map(str, cores[: config.num_threads or len(cores)]))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bound)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
