"""Held-out texts and the prompts cut from them."""

from pathlib import Path

import pytest

from bench.workload import DEFAULT_TEXT, Workload, read_workload, shorten
from models.errors import ConfigError
from models.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tiny_source: object) -> Tokenizer:
    from models.sources.source import open_source

    assert callable(tiny_source)
    return open_source(tiny_source("llama")).tokenizer()


def test_windows_start_at_different_tokens_until_the_stream_is_used_up() -> None:
    workload = Workload(texts=(tuple(range(60)), tuple(range(60, 101))))
    starts = [window[0] for window in workload.windows(101, 4)]
    assert len(set(starts)) == 101


def test_window_longer_than_the_texts_goes_round() -> None:
    workload = Workload(texts=((1, 2, 3),))
    assert workload.window(7) == (1, 2, 3, 1, 2, 3, 1)


def test_shipped_text_has_paragraphs_enough(tokenizer: Tokenizer) -> None:
    workload = read_workload(DEFAULT_TEXT, tokenizer)
    assert len(workload.texts) >= 60


def test_jsonl_takes_texts_and_dialogues(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "plain words"}\n{"prompt": "ask", "answer": "reply", "source": "x"}\n')
    texts = [tokenizer.decode(list(ids)) for ids in read_workload(file, tokenizer).texts]
    assert texts[0] == "plain words"
    assert "ask" in texts[1]
    assert "reply" in texts[1]


@pytest.mark.parametrize(
    ("content", "told"), [("{", "line 1"), ('{"label": "x"}', "neither"), ("", "holds no text"), ("7", "line 1")]
)
def test_bad_text_file_is_named(tmp_path: Path, tokenizer: Tokenizer, content: str, told: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=told):
        read_workload(file, tokenizer)


def test_missing_text_file_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.txt"):
        read_workload(tmp_path / "nothing.txt", tokenizer)


def test_shorten_keeps_whole_texts_and_at_least_one() -> None:
    texts = ((1, 2, 3), (4, 5), (6, 7))
    assert shorten(texts, 5) == texts[:2]
    assert shorten(texts, 1) == texts[:1]
