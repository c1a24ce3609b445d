"""Turns a Hugging Face `config.json` into an `Architecture`, and refuses by name what fenhe cannot run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import UNSET, UnsetType

from models.architecture import Architecture, Family, RopeScaling
from models.errors import ConfigError
from models.text_file import read_json

CONFIG_NAME = "config.json"
QWEN3_HEAD_DIM = 128
MISTRAL_SLIDING_WINDOW = 4096


class HuggingFaceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of `config.json` that decide what the model computes, with the defaults of transformers.

    `rope_parameters` is how transformers 5 writes what used to be `rope_theta` and `rope_scaling`.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    sliding_window: int | UnsetType | None = UNSET
    use_sliding_window: bool = False
    layer_types: tuple[str, ...] | None = None
    quantization_config: dict[str, Any] | None = None
    num_local_experts: int | None = None
    num_experts: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None


def read_config(folder: Path) -> HuggingFaceConfig:
    """Read `folder/config.json`. Raises: ConfigError that names the file and the key."""
    file = folder / CONFIG_NAME
    try:
        family = read_json(file, dict[str, Any]).get("model_type")
        if family not in get_args(Family):
            supported = ", ".join(get_args(Family))
            raise ConfigError(f"{file}: models of the {family!r} family are not supported, only {supported}")
        return read_json(file, HuggingFaceConfig)
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a Hugging Face model folder: it has no {CONFIG_NAME}") from None


def to_architecture(config: HuggingFaceConfig, file: Path) -> Architecture:
    """The architecture behind a config; `file` is for messages.

    Raises: ConfigError that names everything that is not supported.
    """
    if problems := [*_unsupported(config), *_misfits(config)]:
        raise ConfigError(f"{file}: " + "; ".join(problems))
    family: Family = config.model_type  # type: ignore[assignment]  # read_config checked it
    is_biased = config.attention_bias and family in ("llama", "qwen3")
    return Architecture(
        family=family,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=_num_kv_heads(config),
        head_dim=_head_dim(config),
        vocab_size=config.vocab_size,
        max_context_tokens=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope_theta=_rope_theta(config),
        rope_scaling=_rope_scaling(config, file),
        has_qkv_bias=is_biased or family == "qwen2",
        has_output_bias=is_biased,
        has_qk_norm=family == "qwen3",
        has_tied_head=config.tie_word_embeddings,
        sliding_window=_sliding_window(config),
    )


def _unsupported(config: HuggingFaceConfig) -> Iterator[str]:
    if config.num_local_experts or config.num_experts:
        yield "mixture of experts is not supported"
    if config.hidden_act not in ("silu", "swish"):
        yield f"the activation {config.hidden_act!r} is not supported, only silu"
    if config.mlp_bias:
        yield "biases in the feed-forward (mlp_bias) are not supported"
    if config.quantization_config:
        method = config.quantization_config.get("quant_method", "unknown")
        yield f"weights quantised with {method!r} are not supported; take the unquantised model or a GGUF"
    if config.use_sliding_window and config.model_type in ("qwen2", "qwen3"):
        yield "sliding-window layers (use_sliding_window) are not supported in this family"
    if others := sorted(set(config.layer_types or ()) - {"full_attention"}):
        yield f"layers of the type {', '.join(others)} are not supported"
    partial = _rope_settings(config).get("partial_rotary_factor", config.partial_rotary_factor)
    if partial not in (None, 1, 1.0):
        yield f"partial rotary positions (factor {partial}) are not supported"


def _misfits(config: HuggingFaceConfig) -> Iterator[str]:
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": _num_kv_heads(config),
        "max_position_embeddings": config.max_position_embeddings,
    }
    small = [f"{name} is {value}" for name, value in sizes.items() if value < 1]
    yield from small
    if small:
        return
    if config.num_attention_heads % _num_kv_heads(config):
        yield f"{config.num_attention_heads} heads cannot share {_num_kv_heads(config)} key heads"
    if _head_dim(config) < 2 or _head_dim(config) % 2:
        yield f"a head size of {_head_dim(config)} is not even"


def _num_kv_heads(config: HuggingFaceConfig) -> int:
    return config.num_attention_heads if config.num_key_value_heads is None else config.num_key_value_heads


def _head_dim(config: HuggingFaceConfig) -> int:
    if config.head_dim is not None:
        return config.head_dim
    return QWEN3_HEAD_DIM if config.model_type == "qwen3" else config.hidden_size // config.num_attention_heads


def _sliding_window(config: HuggingFaceConfig) -> int | None:
    """Mistral's window, where it is shorter than the context; other families with a window were refused before."""
    if config.model_type != "mistral":
        return None
    window = MISTRAL_SLIDING_WINDOW if config.sliding_window is UNSET else config.sliding_window
    return window if window is not None and window < config.max_position_embeddings else None


def _rope_settings(config: HuggingFaceConfig) -> dict[str, Any]:
    return config.rope_parameters or config.rope_scaling or {}


def _rope_theta(config: HuggingFaceConfig) -> float:
    theta = (config.rope_parameters or {}).get("rope_theta") or config.rope_theta
    return 10_000.0 if theta is None else float(theta)


def _rope_scaling(config: HuggingFaceConfig, file: Path) -> RopeScaling:
    settings = _rope_settings(config)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    try:
        if kind == "default":
            return RopeScaling()
        if kind == "linear":
            return RopeScaling(kind="linear", factor=float(settings["factor"]))
        if kind == "llama3":
            return _llama3_scaling(settings, config.max_position_embeddings)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: the rope settings of type {kind!r} are not usable: {error!r}") from error
    raise ConfigError(f"{file}: rope scaling {kind!r} is not supported, only linear and llama3 are")


def _llama3_scaling(settings: dict[str, Any], max_positions: int) -> RopeScaling:
    return RopeScaling(
        kind="llama3",
        factor=float(settings["factor"]),
        low_freq_factor=float(settings["low_freq_factor"]),
        high_freq_factor=float(settings["high_freq_factor"]),
        original_max_positions=int(settings.get("original_max_position_embeddings") or max_positions),
    )
