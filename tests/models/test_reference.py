import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import WeightsError
from models.reference import KvCache, ReferenceDecoder
from models.sources.source import open_source
from tests.models.greedy_text import chat_ids

IDS = [1, 40, 300, 7, 7, 120, 319, 64, 5, 90, 210, 33, 12, 250, 99, 18, 77, 3, 2, 140]
NUM_GENERATED = 4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def transformers_logits(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits


@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param("llama", {}, id="llama"),
        pytest.param("llama", {"tie_word_embeddings": True}, id="llama-tied"),
        pytest.param("llama", {"attention_bias": True}, id="llama-biases"),
        pytest.param("llama", {"head_dim": 32, "num_key_value_heads": 4}, id="llama-wide-heads"),
        pytest.param(
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}},
            id="llama-linear",
        ),
        pytest.param("llama", {"rope_parameters": LLAMA3}, id="llama-llama3"),
        pytest.param("mistral", {}, id="mistral"),
        pytest.param("mistral", {"sliding_window": 8}, id="mistral-sliding"),
        pytest.param("qwen2", {}, id="qwen2"),
        pytest.param("qwen2", {"tie_word_embeddings": True}, id="qwen2-tied"),
        pytest.param("qwen3", {}, id="qwen3"),
        pytest.param("qwen3", {"attention_bias": True, "tie_word_embeddings": True}, id="qwen3-biases-tied"),
    ],
)
def test_reference_logits_equal_transformers(tiny_source: Any, family: str, config: dict[str, Any]) -> None:
    folder = tiny_source(family, **config)
    logits = ReferenceDecoder(open_source(folder)).forward(IDS)
    expected = transformers_logits(folder, IDS)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [{}, {"sliding_window": 6}])
def test_reference_cache_changes_nothing(tiny_source: Any, config: dict[str, Any]) -> None:
    decoder = ReferenceDecoder(open_source(tiny_source("mistral", **config)))
    cache, num_layers = KvCache(), decoder.architecture.num_layers
    pieces = [decoder.layers(decoder.embed(IDS[i : i + 7]), 0, num_layers, cache) for i in range(0, len(IDS), 7)]
    torch.testing.assert_close(decoder.logits(torch.cat(pieces)), decoder.forward(IDS), atol=2e-4, rtol=1e-4)


def test_reference_layers_compose(tiny_source: Any) -> None:
    decoder = ReferenceDecoder(open_source(tiny_source("qwen3")))
    hidden = decoder.embed(IDS)
    split = decoder.layers(decoder.layers(hidden, 0, 1), 1, 3)
    torch.testing.assert_close(split, decoder.layers(hidden, 0, 4))


def test_reference_greedy_is_the_argmax_of_every_prefix(tiny_source: Any) -> None:
    decoder = ReferenceDecoder(open_source(tiny_source("llama")))
    generated = decoder.generate_greedy(IDS, 6)
    logits = decoder.forward([*IDS, *generated])
    assert generated == logits[len(IDS) - 1 : -1].argmax(dim=-1).tolist()


def test_reference_greedy_text_of_the_default_student_equals_transformers(
    default_gguf: Path, default_greedy_tokens: dict[str, list[int]]
) -> None:
    """A text is greedy when every token is the likeliest after its prefix: one pass over it shows that of all 20, and
    some are also generated token by token."""
    source = open_source(default_gguf)
    tokenizer, decoder = source.tokenizer(), ReferenceDecoder(source)
    assert len(default_greedy_tokens) >= 20
    for index, (prompt, expected) in enumerate(default_greedy_tokens.items()):
        ids = chat_ids(tokenizer, prompt)
        likeliest = likeliest_after_every_prefix(decoder, ids, expected)
        assert tokenizer.decode(likeliest) == tokenizer.decode(expected)
        assert likeliest == expected
        if index < NUM_GENERATED:
            assert decoder.generate_greedy(ids, len(expected)) == expected


def likeliest_after_every_prefix(decoder: ReferenceDecoder, prompt: list[int], text: list[int]) -> list[int]:
    """The likeliest token after the prompt, and after every token of the text but the last, over the cache."""
    cache, num_layers = KvCache(), decoder.architecture.num_layers
    last = decoder.layers(decoder.embed(prompt), 0, num_layers, cache)[-1:]
    rest = decoder.layers(decoder.embed(text[:-1]), 0, num_layers, cache)
    found: list[int] = decoder.logits(torch.cat((last, rest))).argmax(dim=-1).tolist()
    return found


def test_reference_reads_the_default_student_as_text(default_gguf: Path) -> None:
    source = open_source(default_gguf)
    tokenizer = source.tokenizer()
    assert tokenizer.chat_template is not None
    prompt = tokenizer.chat_template.render([{"role": "user", "content": "What is the capital of France?"}])
    generated = ReferenceDecoder(source).generate_greedy(tokenizer.encode(prompt), 12)
    assert "Paris" in tokenizer.decode(generated)


def test_reference_without_torch_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from models.errors import ConfigError\n"
        "try:\n    import models.reference\n"
        "except ConfigError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'fenhe[dev]'" in done.stdout


def test_reference_refuses_an_incomplete_model(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(WeightsError, match=r"model\.layers\.4\.input_layernorm\.weight"):
        ReferenceDecoder(open_source(folder))
