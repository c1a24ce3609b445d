"""Files of every kind, and texts in tokens."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from models.errors import ConfigError
from models.evaluation.texts import Pair, PlainText, Prompt, plain_ids, read_prompts, read_texts, spread
from models.tokenizer import Tokenizer, TokenizerSettings
from tests.conftest import CHAT_TEMPLATE


def write(file: Path, *rows: Mapping[str, object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_what_a_file_holds_shows_in_its_first_line(tmp_path: Path) -> None:
    write(tmp_path / "eval_a.jsonl", {"set": "s", "good": "He runs.", "bad": "He run.", "source": "BLiMP"})
    write(tmp_path / "eval_b.jsonl", {"task": "legal", "text": "We keep it.", "licence": "MIT"})
    write(tmp_path / "eval_c.jsonl", {"task": "math", "prompt": "p", "answer": "a"})
    found = read_texts([tmp_path])
    assert found.pairs == (Pair(set="s", good="He runs.", bad="He run."),)
    assert found.plain == (PlainText(task="legal", text="We keep it."),)
    assert [(row.dataset, row.prompt) for row in found.rows] == [("c", "p")]


def test_limits_count_texts_of_every_task_and_spread_over_pairs(tmp_path: Path) -> None:
    plain = [{"task": task, "text": str(n)} for n, task in enumerate(("a", "a", "b", "a", "b"))]
    pairs = [{"set": str(n), "good": "g", "bad": "b"} for n in range(9)]
    files = [write(tmp_path / "plain.jsonl", *plain), write(tmp_path / "pairs.jsonl", *pairs)]
    found = read_texts(files, 2)
    assert [text.text for text in found.plain] == ["0", "1", "2", "4"]
    assert [pair.set for pair in read_texts(files, 3).pairs] == ["0", "3", "6"]
    assert len(read_texts(files).pairs) == 9


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"task": "a", "text": "t"}\n{"task": "a"}\n', ":2: .*text.*{task, text}"),
        ('{"task": "a", "text": " "}\n', ":1: every part of {task, text} must have text"),
        ('{"set": "a", "good": "g", "bad": 3}\n', ":1: .*bad.*{set, good, bad}"),
        ('{"set": "a", "good": "g", "bad": ""}\n', ":1: every part"),
        ('{"task": "a"}\n', ":1: .*{task, prompt, answer}"),
        ("[]\n", ":1: "),
        ("", "no rows"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: str, words: str) -> None:
    file = tmp_path / "eval_x.jsonl"
    file.write_text(lines)
    with pytest.raises(ConfigError, match=words) as raised:
        read_texts([file])
    assert str(file) in str(raised.value)


def test_prompts_may_have_answers_but_need_text(tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.jsonl", {"task": "a", "prompt": "p", "answer": "ignored"})
    assert read_prompts(file) == [Prompt(task="a", prompt="p")]
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:1: every part of {task, prompt}"):
        read_prompts(write(file, {"task": "a", "prompt": ""}))
    with pytest.raises(ConfigError, match="nowhere"):
        read_prompts(tmp_path / "nowhere")


def test_a_few_of_many_are_evenly_spaced() -> None:
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 5) == [1, 2]
    assert spread([1, 2], 0) == []


def test_plain_text_has_no_template_and_is_cut(tiny_tokenizer_json: str) -> None:
    tokenizer = Tokenizer(Backend.from_str(tiny_tokenizer_json), TokenizerSettings(), CHAT_TEMPLATE)
    start, ids = tokenizer.encode("<|endoftext|>"), tokenizer.encode("the fox <|im_end|>", parse_special=False)
    start = start if len(start) == 1 else []
    assert plain_ids("the fox <|im_end|>", tokenizer, 100) == (*start, *ids)
    assert plain_ids("the fox <|im_end|>", tokenizer, 3) == (*start, *ids)[:3]
