"""From a student folder and settings to an engine over vLLM. The only way in: imports vllm, or says how to get it."""

import atexit
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.build import capacity_tokens
from engines.config import EngineConfig
from engines.vllm.engine import VllmEngine
from engines.vllm.form import ServedForm
from engines.vllm.options import engine_arguments, set_environment, student_form, write_model_folder
from engines.vllm.process import ServingProcess
from models.errors import ConfigError
from models.sources.fetch import cache_folder
from models.student.folder import Student
from models.student.manifest import HeadKind

logger = logging.getLogger(__name__)


def build_vllm_engine(student: Student, config: EngineConfig, options: Mapping[str, Any]) -> VllmEngine:
    """An engine that has yet to be started; `options` are vLLM's, by its own names.

    Raises: ConfigError for a student that vLLM cannot run, options that it does not have, or where it is not installed.
    """
    if problems := config.problems():
        raise ConfigError(*problems)
    if config.kv_precision != "auto":
        raise ConfigError(
            f"kv_precision {config.kv_precision}: vLLM keeps the KV of this student; leave kv_precision out, or set "
            "vLLM's own option, kv_cache_dtype in [student.vllm]"
        )
    set_environment(config)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            'engine = "vllm" needs vLLM, which is not installed: `make serve-vllm` makes an environment that has it, '
            f"docs/engines.md says how ({error})"
        ) from error
    form = student_form(student, config)
    tokens = capacity_tokens(student, config)
    folder = model_folder(student, form)
    arguments = engine_arguments(student, folder, config, tokens, options)
    head: HeadKind = "cheap" if form.head is not None else "exact"

    def start() -> ServingProcess:
        from engines.vllm.core_process import CoreProcess

        return CoreProcess(arguments, student.manifest.architecture, student.tokenizer.eos_token_ids)

    return VllmEngine(
        student,
        form,
        config,
        start,
        capacity_tokens=tokens,
        variant=f"vllm {arguments.dtype}",
        head=head,
    )


def model_folder(student: Student, form: ServedForm) -> Path:
    """The same folder for the same content: vLLM keeps what it compiled by its model's path.

    Where the cache cannot be written, a folder that is removed when this process ends.
    """
    kept = cache_folder(os.environ) / "vllm"
    try:
        kept.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=kept))
    except OSError as error:
        logger.info("vLLM compiles anew at every start: %s cannot be written: %s", kept, error)
        made = Path(tempfile.mkdtemp(prefix="fenhe-vllm-"))
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        write_model_folder(student, form, made)
        return made
    try:
        write_model_folder(student, form, made)
        return _keep(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _keep(made: Path) -> Path:
    """Move a folder to the place that its content names; one that is there and is the same stays."""
    digest = _content_sha256(made)
    folder = made.with_name(digest[:16])
    if folder.is_dir() and _content_sha256(folder) != digest:
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # another process may have been quicker
        made.rename(folder)
    return folder


def _content_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
