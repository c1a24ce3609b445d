"""Plain text: what is read, how it is cut, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.distill.data.plain import LEAST_TOKENS, PIECE_TOKENS, PlainText, encode_plain, read_plain
from models.errors import ConfigError
from models.sources.source import open_source


def test_lines_are_read_in_order(tmp_path: Path) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text('{"task": "fact", "text": "one", "source": "S"}\n\n{"task": "legal", "text": "two"}\n')
    assert read_plain([file]) == [
        PlainText(task="fact", text="one", source="S"),
        PlainText(task="legal", text="two", source="plain.jsonl"),
    ]


@pytest.mark.parametrize("line", ["{", '{"text": "no task"}', '{"task": "fact", "text": 3}', '"text"'])
def test_damaged_lines_are_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text('{"task": "fact", "text": "one"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"plain\.jsonl line 2"):
        read_plain([file])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"widths\.plain: .*nowhere"):
        read_plain([tmp_path / "nowhere"])


def test_texts_are_cut_into_pieces_without_a_prompt(tiny_source: Callable[..., Path]) -> None:
    tokenizer = open_source(tiny_source("llama")).tokenizer()
    long, short = "fox " * (2 * PIECE_TOKENS), "fox"
    ids = tokenizer.encode(long, parse_special=False)
    assert len(tokenizer.encode(short, parse_special=False)) < LEAST_TOKENS
    found = encode_plain([PlainText(task="fact", text=long), PlainText(task="fact", text=short)], tokenizer)
    assert [id for piece in found for id in piece.token_ids] == ids[: sum(one.num_tokens for one in found)]
    assert len(ids) - sum(one.num_tokens for one in found) < LEAST_TOKENS
    assert {(one.task, one.num_prompt_tokens) for one in found} == {("plain fact", 0)}
    assert max(one.num_tokens for one in found) == PIECE_TOKENS


def test_special_tokens_in_plain_text_are_text(tiny_source: Callable[..., Path]) -> None:
    tokenizer = open_source(tiny_source("llama")).tokenizer()
    (one,) = encode_plain([PlainText(task="fact", text="<|im_end|> fox " * 20)], tokenizer)
    assert not any(map(tokenizer.is_special, one.token_ids))
