"""A random model of any size is one that `fenhe build` takes."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from bench.random_model import SIZES, tensors, write
from models.building.build import build_student
from models.student.folder import Student

SMALL = SIZES | {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}


def test_full_size_has_a_billion_parameters() -> None:
    hidden, inner, kv = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_key_value_heads"] * 64
    per_layer = 2 * hidden * hidden + 2 * kv * hidden + 3 * inner * hidden
    assert 1.0e9 < SIZES["num_hidden_layers"] * per_layer + SIZES["vocab_size"] * hidden < 1.1e9


def test_small_one_is_built(tmp_path: Path) -> None:
    write(tmp_path / "model", SMALL)
    build_student(tmp_path / "model", tmp_path / "student", name="random", precisions=("fp32",))
    student = Student.open(tmp_path / "student")
    assert student.manifest.architecture.num_layers == 2
    assert student.tokenizer.decode(student.tokenizer.encode("Hello, 世界")) == "Hello, 世界"


def test_small_one_has_the_tokenizer_of_another_model(tmp_path: Path, tiny_source: Callable[..., Path]) -> None:
    other = tiny_source("llama")
    write(tmp_path / "model", SMALL, other)
    built = {}
    for source in (other, tmp_path / "model"):
        build_student(source, tmp_path / f"of-{source.name}", name="random", precisions=("fp32",))
        built[source] = Student.open(tmp_path / f"of-{source.name}")
    given, random = built.values()
    assert random.manifest.architecture.vocab_size == given.tokenizer.vocab_size
    assert random.tokenizer.eos_token_ids == given.tokenizer.eos_token_ids
    assert random.tokenizer.encode("Hello, 世界") == given.tokenizer.encode("Hello, 世界")


def test_tokenizer_of_another_model_may_describe_its_end_token_and_skip_ids(tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other, SMALL)
    settings, tokens = (json.loads((other / name).read_text()) for name in ("tokenizer_config.json", "tokenizer.json"))
    settings["eos_token"] = {"content": settings["eos_token"], "lstrip": False}
    tokens["model"]["vocab"]["\u0120\u0120"] = 300
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    write(tmp_path / "model", SMALL, other)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    end = Tokenizer.from_file(str(other / "tokenizer.json")).token_to_id("<|end|>")
    assert (config["vocab_size"], config["eos_token_id"]) == (301, end)


def test_values_are_the_same_every_time() -> None:
    (one, first), (other, second) = next(tensors(SMALL)), next(tensors(SMALL))
    assert one == other
    assert (first == second).all()
