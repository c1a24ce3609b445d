"""The teacher's answers: which prompts it gets, each once only, and what becomes of its answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from models.distill.data.labels import Labelled, LabelSettings, label
from models.distill.data.rows import Row
from models.errors import ConfigError, StepFailed
from models.tokenizer import Tokenizer, TokenizerSettings

END = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_json: str) -> Tokenizer:
    settings = TokenizerSettings(eos_token="<|im_end|>", eos_token_ids=(END,))
    return Tokenizer(Backend.from_str(tiny_tokenizer_json), settings, "{{ messages[0]['content'] }}:")


class Echo:
    """Answers with the prompt in capitals, last prompt first; stops after `num_answers`."""

    def __init__(self, tokenizer: Tokenizer, num_answers: int | None = None, *, ends: bool = True) -> None:
        self.tokenizer, self.num_answers, self.ends = tokenizer, num_answers, ends
        self.asked: list[str] = []
        self.settings: dict[str, Any] = {}

    def answer(self, prompts: Sequence[tuple[int, ...]], **settings: Any) -> Iterator[tuple[int, tuple[int, ...]]]:
        self.settings = settings
        for index in list(reversed(range(len(prompts))))[: self.num_answers]:
            text = self.tokenizer.decode(prompts[index])
            self.asked.append(text)
            ids = self.tokenizer.encode(text.upper().removesuffix(":").replace("NOTHING", ""))
            yield index, (*ids, END) if self.ends else tuple(ids)


def row(prompt: str, answer: str | None = None) -> Row:
    return Row(task="fact", prompt=prompt, answer=answer, source="s", licence="MIT")


def ask(rows: list[Row], echo: Echo, folder: Path, teacher: str = "t", **settings: Any) -> Labelled:
    return label(
        rows, echo, echo.tokenizer, folder / "teacher_answers.jsonl", LabelSettings(**settings), teacher=teacher
    )


def test_label_answers_the_unanswered_in_their_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    echo = Echo(tokenizer)
    labelled = ask([row("one"), row("two", "2"), row("three")], echo, tmp_path)
    assert labelled.rows == [row("one", "ONE"), row("two", "2"), row("three", "THREE")]
    assert (labelled.num_asked, labelled.num_found_in_file) == (2, 0)
    assert sorted(echo.asked) == ["one:", "three:"]


def test_label_hands_the_settings_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    echo = Echo(tokenizer)
    ask([row("one")], echo, tmp_path, max_tokens=9, temperature=0.5, top_p=0.8, seed=4)
    assert echo.settings == {"max_tokens": 9, "temperature": 0.5, "top_p": 0.8, "seed": 4}


def test_label_marks_an_answer_without_its_end_as_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (cut,) = ask([row("one")], Echo(tokenizer, ends=False), tmp_path).rows
    assert (cut.answer, cut.is_complete) == ("ONE", False)


def test_label_asks_a_killed_run_only_for_the_rest(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [row("one"), row("two"), row("three")]
    with pytest.raises(StepFailed, match="left 1 of 3 prompts unanswered"):
        ask(rows, Echo(tokenizer, 2), tmp_path)
    echo = Echo(tokenizer)
    labelled = ask(rows, echo, tmp_path)
    assert echo.asked == ["one:"]
    assert [one.answer for one in labelled.rows] == ["ONE", "TWO", "THREE"]
    assert (labelled.num_asked, labelled.num_found_in_file) == (1, 2)


@pytest.mark.parametrize("change", [{"teacher": "u"}, {"temperature": 0.1}, {"seed": 1}, {"max_tokens": 5}])
def test_label_asks_again_for_another_teacher_or_other_settings(
    tmp_path: Path, tokenizer: Tokenizer, change: dict[str, Any]
) -> None:
    ask([row("one")], Echo(tokenizer), tmp_path)
    assert ask([row("one")], Echo(tokenizer), tmp_path, **change).num_asked == 1


def test_label_asks_once_for_a_prompt_that_comes_twice(tmp_path: Path, tokenizer: Tokenizer) -> None:
    echo = Echo(tokenizer)
    assert ask([row("one"), row("one")], echo, tmp_path).rows == [row("one", "ONE")] * 2
    assert echo.asked == ["one:"]


def test_label_replaces_a_share_of_the_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [row(f"question {number}", "given") for number in range(200)]
    some = ask(rows, Echo(tokenizer), tmp_path, share_of_answered=0.25).rows
    assert 30 < sum(one.answer != "given" for one in some) < 70
    every = ask(rows, Echo(tokenizer), tmp_path, share_of_answered=1.0).rows
    assert [one.answer for one in every] == [one.prompt.upper() for one in rows]


def test_label_leaves_out_what_is_answered_with_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [row("nothing"), row("one")]
    labelled = ask(rows, Echo(tokenizer), tmp_path)
    assert [one.answer for one in labelled.rows] == ["ONE"]
    assert labelled.num_without_answer == 1


def test_label_keeps_a_given_answer_where_the_teacher_has_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [row("nothing", "given")]
    assert ask(rows, Echo(tokenizer), tmp_path, share_of_answered=1.0).rows == rows


def test_label_does_not_ask_what_is_too_long(tmp_path: Path, tokenizer: Tokenizer) -> None:
    echo = Echo(tokenizer)
    labelled = ask([row("zzzzz"), row("zzzz"), row("zzzzzz", "given")], echo, tmp_path, max_prompt_tokens=5)
    assert echo.asked == ["zzzz:"]
    assert [one.prompt for one in labelled.rows] == ["zzzz", "zzzzzz"]
    assert labelled.num_too_long == 1


def test_label_tells_its_progress(tmp_path: Path, tokenizer: Tokenizer) -> None:
    reported: list[tuple[int, int]] = []
    label(
        [row("one"), row("two")],
        Echo(tokenizer),
        tokenizer,
        tmp_path / "teacher_answers.jsonl",
        teacher="t",
        progress=lambda done, wanted: reported.append((done, wanted)),
    )
    assert reported == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "settings",
    [{"share_of_answered": 1.5}, {"temperature": -1.0}, {"top_p": 0.0}, {"max_tokens": 0}, {"max_prompt_tokens": 0}],
)
def test_label_settings_refuse_values_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LabelSettings(**settings)
