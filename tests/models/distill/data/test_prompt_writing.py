"""Prompts that the teacher writes: begun like known ones, sorted by a judge, none twice, the same after a kill."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from models.chat_template import ChatTemplate
from models.distill.data.prompt_writing import PromptSettings, WrittenPrompts, user_header, write_prompts
from models.distill.data.rows import Row
from models.errors import ConfigError, StepFailed
from models.sources.source import open_source
from models.tokenizer import Tokenizer

END = 2
TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }}</s>{% endfor %}"


class Writer:
    """Continues every opening with words made of the prompt's ids and the seed. `stops_after`: gives up then."""

    def __init__(self, tokenizer: Tokenizer, *, stops_after: int = 1 << 30, ends: bool = True, words: str = "") -> None:
        self.tokenizer = tokenizer
        self.asked: list[tuple[int, ...]] = []
        self._stops_after = stops_after
        self._end = (END,) if ends else ()
        self._words = words

    def answer(
        self, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        for index, prompt in enumerate(prompts[: self._stops_after]):
            self.asked.append(prompt)
            words = self._words or f" {hash((seed, prompt))} {hash((prompt, seed))}"  # of integers: the same everywhere
            yield index, (*self.tokenizer.encode(words), *self._end)


@pytest.fixture
def tokenizer(tiny_source: Callable[..., Path]) -> Tokenizer:
    tokenizer = open_source(tiny_source("llama")).tokenizer()
    tokenizer.chat_template = ChatTemplate(TEMPLATE)
    return tokenizer


ROWS = [
    Row(task=task, prompt=f"{task} {word} of case {index} and more", answer="yes", source="mine", licence="MIT")
    for index, word in enumerate(["wonders", "stories", "answers", "letters", "numbers", "windows"])
    for task in ("legal", "creative")
]


def written(tmp_path: Path, tokenizer: Tokenizer, writer: Writer, **options: Any) -> WrittenPrompts:
    settings = PromptSettings(
        **{"wanted": {"legal": 4, "creative": 3}, "opening_words": 2, **options.pop("settings", {})}
    )
    return write_prompts(
        ROWS, writer, tokenizer, tmp_path / "prompts.jsonl", settings, teacher="one", **{"judge": begun_as, **options}
    )


def begun_as(prompt: str) -> str:
    return prompt.split(maxsplit=1)[0]


def test_prompts_are_begun_with_the_words_of_known_ones_of_their_task(tmp_path: Path, tokenizer: Tokenizer) -> None:
    writer = Writer(tokenizer)
    found = written(tmp_path, tokenizer, writer)
    assert sorted(row.task for row in found.rows) == ["creative"] * 3 + ["legal"] * 4
    openings = {" ".join(row.prompt.split()[:2]) for row in ROWS}
    assert all(any(row.prompt.startswith(f"{opening} ") for opening in openings) for row in found.rows)
    assert all(row.answer is None and row.licence == "MIT" for row in found.rows)
    header = user_header(tokenizer)
    assert all(prompt[: len(header)] == header and len(prompt) > len(header) for prompt in writer.asked)
    assert len(set(writer.asked)) == len(writer.asked)


def test_user_header_is_what_the_template_writes_before_the_users_words(tokenizer: Tokenizer) -> None:
    assert list(user_header(tokenizer)) == tokenizer.encode("<user> ")
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        user_header(tokenizer)


def test_prompts_go_where_the_judge_says_and_others_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = written(tmp_path, tokenizer, Writer(tokenizer), judge=lambda prompt: "creative")
    assert [row.task for row in found.rows] == ["creative"] * 3
    found = written(tmp_path, tokenizer, Writer(tokenizer), judge=lambda prompt: "booking")
    assert not found.rows
    assert set(found.left_out) == {("legal", "prompt of another task"), ("creative", "prompt of another task")}


def test_without_a_judge_a_prompt_is_of_the_task_it_was_begun_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert {row.task for row in written(tmp_path, tokenizer, Writer(tokenizer), judge=None).rows} == {
        "legal",
        "creative",
    }


def test_prompts_without_an_end_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = written(tmp_path, tokenizer, Writer(tokenizer, ends=False))
    assert not found.rows
    assert {reason for _, reason in found.left_out} == {"prompt cut short"}


def test_prompts_like_known_ones_and_like_each_other_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    same = " of all the houses by the river that nobody lives in since the flood"
    found = written(tmp_path, tokenizer, Writer(tokenizer, words=same), settings={"opening_words": 1})
    assert len(found.rows) == 1
    avoided = [row.prompt for row in found.rows]
    again = written(tmp_path, tokenizer, Writer(tokenizer, words=same), settings={"opening_words": 1}, avoided=avoided)
    assert not again.rows
    assert set(again.left_out) == {("legal", "prompt like a known one"), ("creative", "prompt like a known one")}


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = written(tmp_path / "whole", tokenizer, Writer(tokenizer))
    with pytest.raises(StepFailed, match="run again"):
        written(tmp_path, tokenizer, Writer(tokenizer, stops_after=5))
    rest = Writer(tokenizer)
    assert written(tmp_path, tokenizer, rest).rows == whole.rows
    third = Writer(tokenizer)
    assert written(tmp_path, tokenizer, third).rows == whole.rows
    assert not third.asked
    assert len(rest.asked) == len((tmp_path / "prompts.jsonl").read_text().splitlines()) - 5


def test_further_rounds_write_what_is_still_missing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = written(tmp_path, tokenizer, Writer(tokenizer), settings={"wanted": {"legal": 15}, "rounds": 4})
    assert len(found.rows) == 15, "more than there are openings"
    few = written(tmp_path, tokenizer, Writer(tokenizer), settings={"wanted": {"legal": 15}, "rounds": 1})
    assert len(few.rows) == 6


def test_another_teachers_prompts_are_not_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    written(tmp_path, tokenizer, Writer(tokenizer))
    other = Writer(tokenizer)
    settings = PromptSettings(wanted={"legal": 4, "creative": 3}, opening_words=2)
    write_prompts(ROWS, other, tokenizer, tmp_path / "prompts.jsonl", settings, teacher="two", judge=begun_as)
    assert other.asked


def test_a_task_without_rows_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.wanted\.math"):
        written(tmp_path, tokenizer, Writer(tokenizer), settings={"wanted": {"math": 3}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wanted": {"legal": -1}}, "wanted.legal"),
        ({"opening_words": 0}, "opening_words"),
        ({"rounds": 0}, "rounds"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: dict[str, Any], said: str) -> None:
    assert said in PromptSettings(**change).problems()[0]
