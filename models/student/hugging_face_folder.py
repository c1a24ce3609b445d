"""`fenhe export`: a student's tokenizer, configuration and template as a Hugging Face folder, for tools that count
tokens or render conversations themselves. It holds no weights: those of a student are in its graphs.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.architecture import Architecture
from models.errors import ConfigError
from models.file_writing import naming
from models.student.folder import Student
from models.student.manifest import Manifest
from models.tokenizer import SETTINGS_NAME, TEMPLATE_NAME, TOKENIZER_NAME, Tokenizer

CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}


def export_hugging_face(folder: Path, out: Path) -> Student:
    """Write the folder `out` for the student in `folder`.

    Raises: ConfigError, WeightsError as `Student.open` does; ConfigError when `out` is in the way.
    """
    student = Student.open(folder)
    if out.exists():
        raise ConfigError(f"{out} is in the way; remove it or choose another --out")
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        try:
            write_folder(student, partial)
            partial.chmod(0o755)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return student


def write_folder(student: Student, folder: Path, config: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Fill an empty folder; `config` is added to `config.json`, and wins there.

    Raises: OSError that names the file.
    """
    for name in (TOKENIZER_NAME, TEMPLATE_NAME):
        if (student.folder / name).exists():
            shutil.copyfile(student.folder / name, folder / name)
    manifest, tokenizer = student.manifest, student.tokenizer
    ends = sorted(tokenizer.eos_token_ids)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    files = {
        "config.json": hugging_face_config(manifest.architecture) | ids | dict(config),
        "generation_config.json": ids | _sampling(manifest),
        SETTINGS_NAME: _tokenizer_config(tokenizer, manifest.architecture.max_context_tokens),
        "special_tokens_map.json": _special_tokens(tokenizer),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def hugging_face_config(architecture: Architecture) -> dict[str, Any]:
    """`config.json` without the ids of tokens, for transformers 4 and 5, which write rotary settings differently."""
    scaling = _rope_scaling(architecture)
    config: dict[str, Any] = {
        "architectures": [CLASSES[architecture.family]],
        "model_type": architecture.family,
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": architecture.max_context_tokens,
        "rms_norm_eps": architecture.norm_eps,
        "tie_word_embeddings": architecture.has_tied_head,
        "rope_theta": architecture.rope_theta,
        "rope_scaling": scaling or None,
        "rope_parameters": {"rope_type": "default"} | scaling | {"rope_theta": architecture.rope_theta},
    }
    if architecture.family in ("llama", "qwen3"):
        config["attention_bias"] = architecture.has_output_bias
    if architecture.family == "mistral":
        config["sliding_window"] = architecture.sliding_window
    return config


def _rope_scaling(architecture: Architecture) -> dict[str, Any]:
    scaling = architecture.rope_scaling
    if scaling.kind == "default":
        return {}
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }


def _sampling(manifest: Manifest) -> dict[str, Any]:
    """What the model's authors recommend; transformers samples only where it is told to."""
    if manifest.sampling is None:
        return {}
    if manifest.sampling.temperature == 0.0:
        return {"do_sample": False}
    values = {name: getattr(manifest.sampling, name) for name in manifest.sampling.__struct_fields__}
    return {"do_sample": True} | {name: value for name, value in values.items() if value is not None}


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Batches are padded with the end token, as is usual where a model has no token for it."""
    settings = tokenizer.settings
    found = {"bos_token": settings.bos_token, "eos_token": settings.eos_token, "pad_token": settings.eos_token}
    return {role: token for role, token in found.items() if token is not None}


def _tokenizer_config(tokenizer: Tokenizer, max_tokens: int) -> dict[str, Any]:
    template = {} if tokenizer.chat_template is None else {"chat_template": tokenizer.chat_template.source}
    return {
        "tokenizer_class": tokenizer.settings.tokenizer_class,
        "clean_up_tokenization_spaces": tokenizer.settings.clean_up_tokenization_spaces,
        "model_max_length": max_tokens,
        **_special_tokens(tokenizer),
        **template,
    }
