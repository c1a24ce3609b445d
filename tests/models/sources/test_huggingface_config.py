import json
from pathlib import Path
from typing import Any

import pytest

from models.architecture import RopeScaling
from models.errors import ConfigError
from models.sources.huggingface_config import read_config, to_architecture

BASE = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 8192,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}


def architecture(tmp_path: Path, **changes: Any) -> Any:
    (tmp_path / "config.json").write_text(json.dumps(BASE | changes))
    return to_architecture(read_config(tmp_path), tmp_path / "config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mixtral"}, "'mixtral' family"),
        ({"model_type": "gemma2"}, "'gemma2' family"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial rotary"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"num_key_value_heads": 3}, "cannot share 3 key heads"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"head_dim": 15}, "15 is not even"),
        ({"hidden_size": "big"}, r"\$\.hidden_size"),
    ],
)
def test_config_refuses_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        architecture(tmp_path, **changes)
    assert str(tmp_path / "config.json") in caught.value.message


def test_config_reports_all_problems_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gelu.*mlp_bias"):
        architecture(tmp_path, hidden_act="gelu", mlp_bias=True)


def test_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


def test_config_reads_old_and_new_rope_alike(tmp_path: Path) -> None:
    old = architecture(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3})
    new = architecture(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    assert old == new
    assert old.rope_theta == 5e5
    assert old.rope_scaling == RopeScaling(
        kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=2048
    )


def test_config_fills_in_what_transformers_would(tmp_path: Path) -> None:
    plain = architecture(tmp_path)
    assert (plain.num_kv_heads, plain.head_dim, plain.rope_theta, plain.has_tied_head) == (
        4,
        16,
        10_000.0,
        False,
    )
    assert architecture(tmp_path, model_type="qwen3").head_dim == 128
    assert architecture(tmp_path, model_type="mistral").sliding_window == 4096
    assert architecture(tmp_path, model_type="mistral", sliding_window=None).sliding_window is None
    assert architecture(tmp_path, model_type="mistral", sliding_window=8192).sliding_window is None


@pytest.mark.parametrize(
    ("family", "has_qkv_bias", "has_output_bias", "has_qk_norm"),
    [("llama", True, True, False), ("qwen2", True, False, False), ("qwen3", True, True, True)],
)
def test_config_knows_where_a_family_has_biases(
    tmp_path: Path, family: str, has_qkv_bias: bool, has_output_bias: bool, has_qk_norm: bool
) -> None:
    found = architecture(tmp_path, model_type=family, attention_bias=True)
    assert (found.has_qkv_bias, found.has_output_bias) == (has_qkv_bias, has_output_bias)
    assert found.has_qk_norm is has_qk_norm
