"""An exported student, as transformers and our own reader see it."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.building.build import build_student
from models.errors import ConfigError
from models.sampling import RecommendedSampling
from models.sources.huggingface_config import CONFIG_NAME, read_config, to_architecture
from models.sources.huggingface_tokenizer import read_tokenizer
from models.student.folder import Student
from models.student.hugging_face_folder import export_hugging_face
from tests.conftest import VOCAB_SIZE
from tests.models.sources.test_gguf import llama3_parameters

TEXTS = ("the quick brown fox", "你好 😀\n<|im_start|>user", "", "  a  b ")
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "jump over 😀"}]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied and biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama 3": ("llama", {"max_position_embeddings": 16384, "rope_parameters": llama3_parameters()}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": 64}),
}


@pytest.fixture(params=MODELS)
def exported(request: pytest.FixtureRequest, tiny_source: Any, tmp_path: Path) -> tuple[Student, Path]:
    family, config = MODELS[request.param]
    source = tiny_source(family, **config)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "temperature": 0.5, "top_k": 7}))
    build_student(source, tmp_path / "student", precisions=("fp32",))
    return export_hugging_face(tmp_path / "student", tmp_path / "out"), tmp_path / "out"


def test_export_is_what_our_own_reader_had(exported: tuple[Student, Path]) -> None:
    student, folder = exported
    config = read_config(folder)
    assert to_architecture(config, folder / CONFIG_NAME) == student.manifest.architecture
    tokenizer = read_tokenizer(folder, config)
    assert tokenizer.settings == student.tokenizer.settings
    assert tokenizer.chat_template is not None
    assert student.tokenizer.chat_template is not None
    assert tokenizer.chat_template.source == student.tokenizer.chat_template.source


def test_transformers_reads_an_export_as_the_server_does(exported: tuple[Student, Path]) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    student, folder = exported
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False) == student.tokenizer.encode(text)
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.model_max_length == student.manifest.architecture.max_context_tokens
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer(["a", "the fox"], padding=True)["input_ids"][0].count(tokenizer.pad_token_id) > 0
    template = student.tokenizer.chat_template
    assert template is not None
    wanted = template.render(MESSAGES)
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == wanted
    config: Any = AutoConfig.from_pretrained(folder)
    assert config.vocab_size == student.manifest.architecture.vocab_size
    assert config.model_type == student.manifest.architecture.family
    assert config.rope_parameters["rope_theta"] == student.manifest.architecture.rope_theta
    assert config.eos_token_id == [0, 2]
    generation: Any = GenerationConfig.from_pretrained(folder)
    assert (generation.do_sample, generation.temperature, generation.top_k) == (True, 0.5, 7)
    assert student.manifest.sampling == RecommendedSampling(temperature=0.5, top_k=7)


def test_export_of_a_student_without_template_and_end(tiny_source: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = tiny_source("llama", eos_token_id=None)
    (source / "generation_config.json").unlink(missing_ok=True)
    (source / "tokenizer_config.json").write_text("{}")
    build_student(source, tmp_path / "student", precisions=("fp32",))
    export_hugging_face(tmp_path / "student", tmp_path / "deep" / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "deep" / "out")
    assert tokenizer.encode("the fox", add_special_tokens=False)
    assert tokenizer.chat_template is None
    assert tokenizer.eos_token is None


def test_export_leaves_alone_what_is_there(tiny_source: Any, tmp_path: Path) -> None:
    build_student(tiny_source("llama"), tmp_path / "student", precisions=("fp32",))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="in the way"):
        export_hugging_face(tmp_path / "student", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")) == []


def test_export_of_no_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        export_hugging_face(tmp_path, tmp_path / "out")
