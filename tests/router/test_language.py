"""Which language a text is in, as far as routing needs it."""

import pytest

from router.language import HEAD_CHARS, UNKNOWN, find_language
from router.words import ENGLISH, PARTICLES, WORDS
from tests.router.sentences import LATIN, OTHER_SCRIPTS

SENTENCES = [
    (language, text) for table in (LATIN, OTHER_SCRIPTS) for language, texts in table.items() for text in texts
]

ENGLISH_TEXTS = (
    "What is the capital of Australia?",
    "Write a short poem about autumn.",
    "Is it legal to record a call?",
    "what's 15 percent of 240",
    "who's kobe bryant?",
    "how do I get from São Paulo to Rio de Janeiro?",
    "Who painted the Mona Lisa, Leonardo da Vinci or Michelangelo?",
    "What is a naïve Bayes classifier?",
    "How do you translate 你好世界 into English?",
    'What does "наблюдатель" mean in Russian, and where does the word come from?',
    "Explain the difference between α and β particles.",
    "Compute $\\sin 135^\\circ$ and $\\cos \\frac{\\pi}{7}$.",
    "Mai earns $5.50 per hour. How many hours does she have to work to earn $132?",
    "Who wrote Les Misérables?",
    "how to order crème brûlée in the restaurant",
    "My son's café serves jalapeño burgers. Draft a menu!",
    "create a namespace in the k8s cluster",
    "Thanks!",
    "hello",
)
NO_LANGUAGE = (
    "",
    "   ",
    "12 * (7 + 5) = ?",
    "$\\alpha + \\beta = \\gamma$",
    "\\[\\sum_{i=1}^{n} i^2\\]",
    "```python\ndef la(para, una): return para\n```",
    "https://example.org/los/de/la?que=por",
    "Fe2O3",
    "x = y",
    "α + β",
    "Johann Sebastian Bach",
    "León Gómez",
    "kubernetes",
    "🎉🎉🎉",
    "---",
)


@pytest.mark.parametrize(("language", "text"), SENTENCES)
def test_language_of_other_sentences_is_not_english(language: str, text: str) -> None:
    assert find_language(text) not in ("en", None)
    if language in OTHER_SCRIPTS:
        assert find_language(text) == language


def test_language_is_mostly_the_right_one_in_latin_script_too() -> None:
    told = [(language, find_language(text)) for language, texts in LATIN.items() for text in texts]
    assert len(told) >= 60
    assert sum(language == found for language, found in told) >= 0.9 * len(told)


@pytest.mark.parametrize("text", ENGLISH_TEXTS)
def test_language_of_english_is_english(text: str) -> None:
    assert find_language(text) == "en"
    assert find_language(text.upper()) in ("en", None)


@pytest.mark.parametrize("text", NO_LANGUAGE)
def test_text_without_words_that_tell_has_no_language(text: str) -> None:
    assert find_language(text) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("用python写一个quicksort", "zh"),
        ("Erkläre mir diesen Text: the cat is here. Was bedeutet das und wie kann ich das besser schreiben?", "de"),
        ("請將以下內容翻譯成中文：hello", "zh"),
        ("Пожалуйста, напиши quicksort на python", "ru"),
        ("ጤና ይስጥልኝ እንዴት ነህ", UNKNOWN),
        ("ĉu ŝi ŝatas ĉokoladon?", "eo"),
    ],
)
def test_language_of_mixed_and_rare_texts(text: str, language: str) -> None:
    assert find_language(text) == language


def test_only_both_ends_of_a_long_text_are_read() -> None:
    inside = "x" * HEAD_CHARS + " Was ist das und warum ist es so? " * 20
    assert find_language(inside + "1 " * 200) is None
    assert find_language("What is this and why is it so? " * 20 + inside + "1 " * 200) == "en"
    assert find_language("Was ist das und warum ist es so? " * 20) == "de"


def test_words_are_lower_case_and_longer_than_a_letter() -> None:
    for word in (*ENGLISH, *WORDS):
        assert word == word.lower()
        assert len(word) > 1
    assert not ENGLISH & PARTICLES - set(WORDS)
