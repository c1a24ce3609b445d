import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from models.errors import ConfigError
from models.sources.source import open_source
from models.tokenizer import Tokenizer


def read(folder: Path) -> Tokenizer:
    return open_source(folder).tokenizer()


def change(file: Path, **changes: Any) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | changes))


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("names", [None, ["$A"], ["<|im_start|>", "$A"], ["<|im_start|>", "$A", "<|im_end|>"]])
def test_tokenizer_surrounds_a_prompt_like_transformers(
    tiny_source: Any, names: list[str] | None, flags: dict[str, Any]
) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = tiny_source("llama")
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **flags)
    if names is not None:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
        special = [("<|im_start|>", 1), ("<|im_end|>", 2)]
        backend.post_processor = processors.TemplateProcessing(single=names, special_tokens=special)
        backend.save(str(folder / "tokenizer.json"))
    expected = PreTrainedTokenizerFast.from_pretrained(folder)("the quick<|im_end|> fox").input_ids
    assert read(folder).encode("the quick<|im_end|> fox", add_special=True) == expected
    assert len(expected) == 6 + len(names or ["$A"]) - 1


def test_tokenizer_ends_with_every_token_that_any_file_names(tiny_source: Any) -> None:
    folder = tiny_source("llama", eos_token_id=5)
    change(folder / "generation_config.json", eos_token_id=[0, 7])
    assert read(folder).eos_token_ids == {0, 2, 5, 7}


def test_tokenizer_takes_tokens_written_as_objects(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    change(folder / "tokenizer_config.json", bos_token={"__type": "AddedToken", "content": "<|endoftext|>"})
    assert read(folder).bos_token_id == 0


def test_template_comes_from_the_newest_place(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "list"}]

    def template() -> str | None:
        found = read(folder).chat_template
        return None if found is None else found.source

    change(folder / "tokenizer_config.json", chat_template=None)
    assert template() is None
    change(folder / "tokenizer_config.json", chat_template=named)
    assert template() == "list"
    change(folder / "chat_template.json", chat_template="json")
    assert template() == "json"
    (folder / "chat_template.jinja").write_text("jinja")
    assert template() == "jinja"


def test_tokenizer_missing_file_says_how_to_make_it(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json.*AutoTokenizer"):
        read(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "chat_template.json"])
def test_tokenizer_names_the_damaged_file(tiny_source: Any, name: str) -> None:
    folder = tiny_source("llama")
    (folder / name).write_text("[")
    with pytest.raises(ConfigError, match=name):
        read(folder)
