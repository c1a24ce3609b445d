from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.architecture import RopeScaling
from models.errors import ConfigError, WeightsError
from models.reference import ReferenceDecoder
from models.rope import frequency_divisors
from models.sampling import RecommendedSampling
from models.sources.gguf import GgufSource
from models.sources.source import check_complete, open_source

IDS = [1, 40, 300, 7, 120, 319, 64, 5, 90, 210, 33, 12]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
        ("mistral", {"head_dim": 32}),
        ("qwen2", {}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_gguf_source_undoes_the_converter(
    tiny_source: Any, tiny_gguf: Any, family: str, config: dict[str, Any]
) -> None:
    folder = tiny_source(family, **config)
    source, original = open_source(tiny_gguf(folder)), open_source(folder)
    check_complete(source)
    for name in original.tensor_names():
        np.testing.assert_array_equal(source.read(name), original.read(name), err_msg=name)
    torch.testing.assert_close(ReferenceDecoder(source).forward(IDS), ReferenceDecoder(original).forward(IDS))


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_1", 0.15)])
def test_gguf_source_dequantises(tiny_source: Any, tiny_gguf: Any, kind: str, tolerance: float) -> None:
    folder = tiny_source("llama")
    source, original = GgufSource(tiny_gguf(folder, quantisation=kind)), open_source(folder)
    for name in ("model.layers.1.self_attn.q_proj.weight", "lm_head.weight"):
        assert source.read(name).dtype == np.float32
        np.testing.assert_allclose(source.read(name), original.read(name), atol=tolerance)


def test_gguf_source_gives_copies(tiny_source: Any, tiny_gguf: Any) -> None:
    source = GgufSource(tiny_gguf(tiny_source("llama")))
    source.read("model.norm.weight")[:] = 7.0
    assert not (source.read("model.norm.weight") == 7.0).any()


def test_gguf_source_recovers_llama3_scaling(tiny_source: Any, tiny_gguf: Any) -> None:
    folder = tiny_source("llama", max_position_embeddings=16384, rope_parameters=llama3_parameters())
    scaling = RopeScaling(kind="llama3", factor=8.0)
    divisors = frequency_divisors(16, 500_000.0, scaling).astype(np.float32)
    source = GgufSource(tiny_gguf(folder, extra_tensors={"rope_freqs.weight": divisors}))
    assert source.architecture == open_source(folder).architecture
    check_complete(source)


def llama3_parameters() -> dict[str, Any]:
    settings = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 8192, **settings}


def test_gguf_source_refuses_a_frequency_table_it_cannot_explain(tiny_source: Any, tiny_gguf: Any) -> None:
    table = np.linspace(1.0, 9.0, 8, dtype=np.float32)
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight"):
        GgufSource(tiny_gguf(tiny_source("llama"), extra_tensors={"rope_freqs.weight": table}))


def test_gguf_source_reads_linear_scaling(tiny_source: Any, tiny_gguf: Any) -> None:
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    source = GgufSource(tiny_gguf(tiny_source("llama"), metadata=metadata))
    assert source.architecture.rope_scaling == RopeScaling(kind="linear", factor=4.0)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "partial rotary"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.logit_scale": 0.5}, "logit_scale"),
        ({"split.count": 3}, "llama-gguf-split --merge"),
    ],
)
def test_gguf_source_refuses_by_name(tiny_source: Any, tiny_gguf: Any, metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GgufSource(tiny_gguf(tiny_source("llama"), metadata=metadata))


def test_gguf_source_refuses_other_families(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "g.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="'gemma3' family"):
        GgufSource(tmp_path / "g.gguf")


def test_gguf_source_reports_tensors_nobody_knows(tiny_source: Any, tiny_gguf: Any) -> None:
    extra = {"blk.0.attn_sinks.weight": np.ones(4, dtype=np.float32)}
    source = GgufSource(tiny_gguf(tiny_source("llama"), extra_tensors=extra))
    with pytest.raises(WeightsError, match=r"unknown tensors: blk\.0\.attn_sinks\.weight"):
        check_complete(source)


def test_gguf_source_of_the_default_student(default_gguf: Path) -> None:
    source = GgufSource(default_gguf)
    check_complete(source)
    assert (source.name, source.licence) == ("smollm2-135m", "apache-2.0")
    assert source.architecture.num_layers == 30
    assert source.architecture.norm_eps == 1e-5


def test_gguf_source_has_the_sampling_of_its_metadata(tiny_source: Any, tiny_gguf: Any) -> None:
    folder = tiny_source("llama")
    metadata = {
        "general.sampling.temp": 0.7,
        "general.sampling.top_p": 0.8,
        "general.sampling.top_k": 20,
        "general.sampling.min_p": 0.05,
        "general.sampling.penalty_repeat": 1.05,
        "general.sampling.mirostat": 2,
    }
    expected = RecommendedSampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.05, repetition_penalty=1.05)
    assert GgufSource(tiny_gguf(folder, metadata=metadata)).sampling == expected
    assert GgufSource(tiny_gguf(folder)).sampling is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("temp", float("nan")), ("temp", "hot"), ("top_p", 1.5), ("top_k", 7.5), ("penalty_repeat", float("inf"))],
)
def test_gguf_source_leaves_out_sampling_that_cannot_be_used(
    tiny_source: Any, tiny_gguf: Any, caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    file = tiny_gguf(tiny_source("llama"), metadata={f"general.sampling.{key}": value, "general.sampling.min_p": 0.5})
    assert GgufSource(file).sampling == RecommendedSampling(min_p=0.5)
    assert f"file={file} key=general.sampling.{key} " in caplog.text
