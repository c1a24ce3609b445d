"""Templates: what fills their places, how many texts they give, and which files are refused."""

import random
from pathlib import Path

import pytest

from models.errors import ConfigError
from router.training.corpus import LABELS
from router.training.grammar import (
    GRAMMAR_FOLDER,
    MAX_DRAWS,
    Grammar,
    Style,
    draw_texts,
    read_grammar,
    read_grammars,
)


def grammar(*prompts: str, **slots: tuple[str, ...]) -> Grammar:
    return Grammar(name="math", label="math", lang="en", slots=slots, styles=(Style(name="plain", prompts=prompts),))


def texts_of(found: Grammar, prompt: str, num_draws: int = 200) -> set[str]:
    rng = random.Random(0)
    return {found.expand(prompt, rng) for _ in range(num_draws)}


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("plain", {"plain"}),
        ("a [[one|two words|]] z", {"a one z", "a two words z", "a  z"}),
        ("[[8..11]]", {"8", "9", "10", "11"}),
        ("[[-1..1]]", {"-1", "0", "1"}),
        ("[[7..7]]", {"7"}),
        ("[[fruit]]", {"apple", "fig 1", "fig 2"}),
        ("[[fruit]] [[1..1]]", {"apple 1", "fig 1 1", "fig 2 1"}),
        ("[single] ]] [[", {"[single] ]] [["}),
    ],
)
def test_prompt_gives_every_text_of_its_places(prompt: str, texts: set[str]) -> None:
    found = grammar(fruit=("apple", "fig [[1..2]]"))
    assert texts_of(found, prompt) == texts
    assert found.num_variants(prompt) == len(texts)


def test_places_are_filled_apart() -> None:
    assert texts_of(grammar(), "[[a|b]][[a|b]]") == {"aa", "ab", "ba", "bb"}


def test_variants_multiply_over_places_and_add_over_values() -> None:
    found = grammar(outer=("x", "[[inner]] [[inner]]"), inner=("1", "2", "[[1..8]]"))
    assert found.num_variants("[[outer]] [[a|b|c]]") == (1 + 10 * 10) * 3


def test_fixed_prompts_come_once_and_templates_by_the_root_of_their_variants() -> None:
    style = grammar("fixed", "[[1..16]] short", "[[1..100000]] long").styles[0]
    texts = draw_texts(grammar(), style, random.Random(0))
    assert texts.count("fixed") == 1
    assert 1 < sum(text.endswith("short") for text in texts) <= 4
    assert MAX_DRAWS - 2 <= sum(text.endswith("long") for text in texts) <= MAX_DRAWS


def test_drawn_texts_are_distinct_stripped_and_not_empty() -> None:
    style = grammar(" same ", "same", "[[ | ]]", "", "other").styles[0]
    assert draw_texts(grammar(), style, random.Random(0)) == ["same", "other"]


def test_drawn_texts_depend_on_the_seed_alone() -> None:
    style = grammar("[[1..999999]]").styles[0]
    drawn = [draw_texts(grammar(), style, random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "slots", [{"a": ("[[a]]",)}, {"a": ("[[b]]",), "b": ("x [[a]]",)}], ids=["itself", "one another"]
)
def test_circle_of_slots_is_refused(slots: dict[str, tuple[str, ...]]) -> None:
    found = grammar("[[a]]", **slots)
    with pytest.raises(ConfigError, match=r"en/math.*circle"):
        found.expand("[[a]]", random.Random(0))
    with pytest.raises(ConfigError, match=r"en/math.*circle"):
        draw_texts(found, found.styles[0], random.Random(0))


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / "en" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_file_is_read_with_slots_and_styles(tmp_path: Path) -> None:
    text = '[slots]\nn = ["one", "[[2..3]]"]\n[[styles]]\nname = "exam"\nprompts = ["add [[n]]", "sum [[a|b]]"]\n'
    assert read_grammar(write(tmp_path, "math-2.toml", text)) == Grammar(
        name="math-2",
        label="math",
        lang="en",
        slots={"n": ("one", "[[2..3]]")},
        styles=(Style(name="exam", prompts=("add [[n]]", "sum [[a|b]]")),),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[styles", "cannot be read"),
        ("", "styles"),
        ("styles = 3", "cannot be read"),
        ("slots = 3\nstyles = []", "cannot be read"),
        ('[[styles]]\nname = "x"', "prompts"),
        ('[[styles]]\nprompts = ["x"]', "name"),
        ('[[styles]]\nname = "x"\nprompts = ["[[9..2]]"]', "empty range: 9..2"),
        ('[[styles]]\nname = "x"\nprompts = ["[[gone]] [[1..2]] [[a|b]]"]', "no such slot: gone"),
        (
            '[slots]\na = ["[[b]]"]\n[[styles]]\nname = "x"\nprompts = ["[[a]] [[c]]"]',
            "no such slot: b; no such slot: c",
        ),
    ],
)
def test_bad_file_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    file = write(tmp_path, "math.toml", text)
    with pytest.raises(ConfigError) as error:
        read_grammar(file)
    assert str(file) in str(error.value)
    assert problem in str(error.value)


def test_file_that_is_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml"):
        read_grammar(tmp_path / "gone.toml")
    (tmp_path / "math.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"math\.toml"):
        read_grammar(tmp_path / "math.toml")


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("other.toml", "fact.toml", "fact-2.toml"):
        write(tmp_path, name, "styles = []")
    write(tmp_path, "notes.txt", "not a grammar")
    assert [found.name for found in read_grammars(tmp_path)] == ["fact-2", "fact", "other"]


def test_shipped_grammars_have_every_label_in_both_languages() -> None:
    found = read_grammars()
    assert {(one.lang, one.label) for one in found} == {(lang, label) for lang in ("en", "zh") for label in LABELS}
    assert len(found) == len(list(GRAMMAR_FOLDER.rglob("*.toml")))


def test_shipped_grammars_leave_no_place_open() -> None:
    for found in read_grammars():
        for style in found.styles:
            texts = draw_texts(found, style, random.Random(3))
            assert texts, f"{found.lang}/{found.name} {style.name}"
            assert not [text for text in texts if "[[" in text and "]]" in text]
