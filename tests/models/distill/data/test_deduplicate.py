"""Similar prompts: found, dropped, and kept on one side of the split."""

import random

import pytest

from models.distill.data.deduplicate import deduplicate, normalised, split_heldout
from models.distill.data.rows import Row
from models.errors import ConfigError

LONG = (
    "A baker sells small loaves in the morning and large loaves in the afternoon. On Monday she sold twelve small "
    "loaves and nine large loaves, and on Tuesday she sold twice as many. How many did the baker sell altogether?"
)
CHINESE = "小明有十二个苹果，他把其中的五个给了小红，后来妈妈又买了七个苹果给他。请问小明现在一共有多少个苹果？"


def row(prompt: str, answer: str | None = None, task: str = "math") -> Row:
    return Row(task=task, prompt=prompt, answer=answer, source="test")


def sentences(count: int, seed: int = 5) -> list[str]:
    """Texts of random words, unlike each other."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=6)) for _ in range(2000)]
    return [" ".join(draw.choices(words, k=20)) for _ in range(count)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  2+2?", "what is 2 2"),
        ("\uff21\uff22\uff23\uff01", "abc"),
        ("Stra\u00dfe", "STRASSE"),
        ("e\u0301", "\u00e9"),
        ("你好，世界", "你好 世界！"),
    ],
)
def test_normalised_drops_what_does_not_change_the_meaning(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_normalised_keeps_a_text_that_is_all_punctuation() -> None:
    assert normalised("?!") != normalised("...")


@pytest.mark.parametrize(
    ("text", "twin"),
    [
        (LONG, LONG.replace("twelve", "eleven")),
        (LONG, LONG.replace("A baker", "One baker").replace("altogether", "in all")),
        (CHINESE, CHINESE.replace("小红", "小兰")),
    ],
)
def test_deduplicate_drops_a_near_duplicate(text: str, twin: str) -> None:
    similarity = (
        0.8 if text is LONG else 0.6
    )  # one name is five of the few shingles that Chinese has, twice as many bits
    kept, dropped = deduplicate([row(text), row(twin)], similarity=similarity)
    assert [one.prompt for one in kept] == [text]
    assert dropped == {("math", "near-duplicate"): 1}


def test_deduplicate_keeps_what_only_shares_words() -> None:
    rows = [row("How many loaves did the baker sell?"), row("Who baked the first loaves of bread?"), row(LONG)]
    assert deduplicate(rows) == (rows, {})


def test_deduplicate_counts_exact_ones_apart_by_task() -> None:
    rows = [row("What is 2+2?"), row("Name a river."), row("what is 2 2", task="fact"), row("Name a river")]
    kept, dropped = deduplicate(rows)
    assert kept == rows[:2]
    assert dropped == {("fact", "duplicate"): 1, ("math", "duplicate"): 1}


def test_deduplicate_prefers_the_answered_row_and_keeps_the_order() -> None:
    rows = [row("What is 2+2?"), row("Name a river."), row("what is 2+2?", "4")]
    assert deduplicate(rows)[0] == rows[1:]


def test_deduplicate_drops_what_is_like_an_evaluation_prompt() -> None:
    rows = [row(LONG.upper()), row("Name a river.")]
    kept, dropped = deduplicate(rows, against=[LONG, LONG])
    assert kept == rows[1:]
    assert dropped == {("math", "like an evaluation prompt"): 1}


def test_deduplicate_compares_with_what_is_kept_only() -> None:
    first, *_ = sentences(1)
    words = first.split()
    second, third = " ".join(words[2:]), " ".join(words[4:])
    kept, _ = deduplicate([row(first), row(second), row(third)], similarity=0.85)
    assert [one.prompt for one in kept] == [first, third]


def test_deduplicate_survives_texts_shorter_than_a_shingle() -> None:
    rows = [row("a"), row("b"), row("分"), row("?"), row("a!")]
    assert deduplicate(rows) == (rows[:4], {("math", "duplicate"): 1})


def test_deduplicate_finds_every_pair_among_many() -> None:
    texts = sentences(3000)
    twins = [text + " too" for text in texts[:200]]
    kept, dropped = deduplicate([row(text) for text in [*texts, *twins]])
    assert [one.prompt for one in kept] == texts
    assert dropped == {("math", "near-duplicate"): 200}


def test_split_heldout_takes_about_its_share() -> None:
    split = split_heldout([row(text) for text in sentences(2000)], 0.1)
    assert len(split.training) + len(split.held_out) == 2000
    assert 150 < len(split.held_out) < 250
    assert split.left_out == []


def test_split_heldout_stays_when_rows_are_added() -> None:
    rows = [row(text) for text in sentences(400)]
    before, after = split_heldout(rows[:200], 0.3), split_heldout(rows, 0.3)
    assert after.held_out[: len(before.held_out)] == before.held_out
    assert after.training[: len(before.training)] == before.training


def test_split_heldout_decides_by_the_prompt_and_the_seed() -> None:
    rows = [row(text) for text in sentences(200)]
    held_out = {one.prompt for one in split_heldout(rows, 0.3).held_out}
    assert {one.prompt for one in split_heldout(rows[::-1], 0.3).held_out} == held_out
    assert {one.prompt for one in split_heldout(rows, 0.3, seed=1).held_out} != held_out


def test_split_heldout_puts_like_prompts_on_one_side() -> None:
    texts = sentences(200)
    split = split_heldout([row(text) for text in texts] + [row(text + " and so on") for text in texts], 0.5)
    for side in (split.training, split.held_out):
        prompts = {one.prompt.removesuffix(" and so on") for one in side}
        assert len(side) == 2 * len(prompts)


def test_split_heldout_leaves_out_a_row_that_is_like_both_sides() -> None:
    texts = sentences(40)
    split = split_heldout([row(text) for text in texts], 0.5)
    one, other = split.training[0].prompt, split.held_out[0].prompt
    between = row(f"{one} {other}")
    again = split_heldout([row(one), row(other), between], 0.5, similarity=0.4)
    assert (len(again.training), len(again.held_out), again.left_out) == (1, 1, [between])


def test_split_heldout_can_hold_out_nothing() -> None:
    rows = [row(text) for text in sentences(20)]
    assert split_heldout(rows, 0.0).training == rows


def test_split_heldout_refuses_to_leave_nothing() -> None:
    with pytest.raises(ConfigError, match="leaves nothing to train on"):
        split_heldout([], 1.0)
