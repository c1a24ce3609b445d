"""Changes to a text that keep its task: wrappings, cuts, options, typos, documents beside it.

Wrappings and options are the same for every class, so that the classifier learns to ignore them.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable

from router.training.corpus import LABELS, Row

_DOCUMENT_SHARE = 0.06
_MAX_REQUEST_CHARS = 300

_WRAPPINGS = {
    "en": (
        "Question: {}",
        "Q: {} A:",
        "Answer the following question: {}",
        "please help me with this. {}",
        "{} Please explain your reasoning.",
        "{} Answer:",
        "Hi, {}",
        "Hello! {} Thank you.",
        "I need your help: {}",
        "{}\nThanks!",
        "Read the following and respond.\n{}",
        "{} (answer briefly)",
        "Task: {}",
        "User: {}",
        "User: {}\nAssistant:",
        "{} Let's think step by step.",
        "Can you help? {}",
        "### Instruction:\n{}\n### Response:",
        "Choose the correct option. {}",
        "Which of the following is right? {}",
        "You are a helpful assistant. {}",
        "Below is a question. Give a detailed answer.\n\n{}",
        "12. {}",
        "({}) ",
        "{}?",
        "I was wondering: {}",
        "For my class: {}",
    ),
    "zh": (
        "问题：{}",
        "请回答下列问题：{}",
        "请问{}",
        "{}请说明理由。",
        "{}答案：",
        "你好，{}",
        "帮我看看：{}",
        "{}谢谢",
        "题目：{}",
        "（  ）{}",
        "下列说法正确的是（ ） {}",
        "以下是一道题目，请作答。\n{}",
        "{}（ ）",
        "用户：{}",
        "用户：{}\n助手：",
        "12. （5分）{}",
        "3．{}（　　）",
        "请根据以下内容作答：{}",
        "{}\n请一步一步思考。",
        "单选题：{}",
        "我想问一下，{}",
        "你是一个有用的助手。{}",
        "### 指令：\n{}\n### 回答：",
        "麻烦您了，{}",
    ),
}
_OPTIONS = (
    "A. {} B. {} C. {} D. {}",
    "(A) {} (B) {} (C) {} (D) {}",
    "\nA. {}\nB. {}\nC. {}\nD. {}",
    "A、{} B、{} C、{} D、{}",
    "\n(a) {}\n(b) {}\n(c) {}\n(d) {}",
    "\nA：{}\nB：{}\nC：{}\nD：{}",
    "\n1) {}\n2) {}\n3) {}\n4) {}",
)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？\n])")
_WORDS = {"en": re.compile(r"[A-Za-z]+"), "zh": re.compile(r"[\u4e00-\u9fff]{2}")}
_JOINERS = {"en": " ", "zh": ""}
_KEYS = "abcdefghijklmnopqrstuvwxyz"
_WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


class Variation:
    """Draws variants of rows. Only written rows serve as documents in them.

    A real row as a document under another label would teach a model the wrong label for a source it is judged on.
    """

    def __init__(self, rows: Iterable[Row], seed: int) -> None:
        self._rng = random.Random(seed)
        self._texts: dict[tuple[str, str], list[str]] = defaultdict(list)
        for row in rows:
            if row.is_written:
                self._texts[row.lang, row.label].append(row.text)

    def vary(self, row: Row) -> str:
        """One variant of a row's text."""
        rng = self._rng
        text = row.text
        if rng.random() < _DOCUMENT_SHARE and len(text) < _MAX_REQUEST_CHARS:
            text = self._with_document(row, rng)
        return vary_form(text, row.lang, rng)

    def _with_document(self, row: Row, rng: random.Random) -> str:
        """The request before or after a document. Where the task is what to do (write, edit, chat), the document may be
        about anything; where the task is a subject, the document is about that subject."""
        labels = LABELS if row.label in {"creative", "other"} else (row.label,)
        texts = self._texts[row.lang, rng.choice(labels)]
        if not texts:
            return row.text
        document = " ".join(rng.choices(texts, k=rng.randint(1, 3)))
        return f"{row.text}\n\n{document}" if rng.random() < 0.7 else f"{document}\n\n{row.text}"


def vary_form(text: str, lang: str, rng: random.Random) -> str:
    """The text cut, wrapped, given options or typed differently."""
    if rng.random() < 0.35:
        text = _cut(text, rng)
    if rng.random() < 0.2:
        text = f"{text} {_options(text, lang, rng)}"
    if rng.random() < 0.5:
        text = rng.choice(_WRAPPINGS.get(lang, _WRAPPINGS["en"])).replace("{}", text)
    if rng.random() < 0.15:
        text = text.rstrip("?？.。!！")
    return _retype(text, rng)


def _retype(text: str, rng: random.Random) -> str:
    """Typos, capitals or full-width forms, in a quarter of the cases."""
    draw = rng.random()
    if draw < 0.15:
        return make_typos(text, rng.uniform(0.02, 0.12), rng)
    if draw < 0.2:
        return text.upper()
    if draw < 0.25:
        return text.translate(_WIDE)
    return text


def make_typos(text: str, share: float, rng: random.Random) -> str:
    """Change this share of the characters: dropped, doubled, swapped with the next, or replaced."""
    chars = list(text)
    for index in range(len(chars)):
        if rng.random() < share:
            chars[index] = _typo(chars, index, rng)
    return "".join(chars)


def _typo(chars: list[str], index: int, rng: random.Random) -> str:
    char = chars[index]
    kind = rng.randrange(4)
    if kind == 0:
        return ""
    if kind == 1:
        return char * 2
    if kind == 2 and index + 1 < len(chars):
        char, chars[index + 1] = chars[index + 1], char
        return char
    return rng.choice(_KEYS) if char.isascii() else rng.choice(chars)


def _cut(text: str, rng: random.Random) -> str:
    """Some sentences from the beginning or the end of a longer text."""
    sentences = _SENTENCE_END.split(text)
    if len(sentences) < 3:
        return text
    at = rng.randint(1, len(sentences) - 1)
    kept = "".join(sentences[at:] if rng.random() < 0.5 else sentences[:at]).strip()
    return kept or text


def _options(text: str, lang: str, rng: random.Random) -> str:
    """Four options of the text's own words."""
    words = _WORDS.get(lang, _WORDS["en"]).findall(text)
    if not words:
        return ""
    joiner = _JOINERS.get(lang, " ")
    return rng.choice(_OPTIONS).format(*(joiner.join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(4)))
