"""The bound is never above the real number of tokens, whatever the tokenizer and the text; where it cannot be proven,
there is none."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from models.sources.source import open_source
from models.token_bytes import SPACE_MARK
from models.tokenizer import Tokenizer, TokenizerSettings

SAMPLE = [
    "the international understanding of representatives " * 3,
    "====================\n\n\n\n                    x",
    "日本語のテキスト, ελληνικά, русский текст, ngữ pháp, 한국어" * 2,
    "\u2581\u2581\u2581 ``` e\u0301 \u00e9 \u1ec7",
]
PIECES = [
    *(
        "the international",
        "understanding",
        "=" * 40,
        " " * 33,
        "\t\n\r\n",
        "\u2581" * 9,
        " \u2581 ",
        "\u00a0\u3000\u2003",
    ),
    *(
        "<|mark|>",
        "  <|mark|>  ",
        "\u3000<|wide|>\u3000",
        "<0x41>",
        "\x00\x04\x1d",
        "\U0001f600",
        "\U000e0001",
        "\ue000",
    ),
    *(
        "e\u0301",
        "a\u0323\u0302",
        "\u1fef\u1fef",
        "\u212b",
        "\u1100\u1161\u11a8",
        "\u0390",
        "\u0041\u030a\u0301",
        "`" * 9,
    ),
    *("日本語", "한국어", "русский", "हिन्दी", "עברית", "ไทย", "\U0002f800"),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=40).map("".join)
ANY_TEXT = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def trained(backend: Backend, alphabet: list[str], *added: AddedToken) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SAMPLE, trainer)
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])
    return Tokenizer(backend, TokenizerSettings(), None)


def byte_level(*added: AddedToken, normalizer: normalizers.Normalizer | None = None, size: int = 256) -> Tokenizer:
    """With `size` below 256 some bytes have no token, and vanish."""
    backend = Backend(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    return trained(backend, sorted(pre_tokenizers.ByteLevel.alphabet())[:size], *added)


def sentencepiece(*added: AddedToken, has_bytes: bool = True) -> Tokenizer:
    backend = Backend(models.BPE(byte_fallback=has_bytes, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)])
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))] if has_bytes else ["<unk>"],
    )
    backend.train_from_iterator(SAMPLE, trainer)
    backend.add_tokens(list(added))
    return Tokenizer(backend, TokenizerSettings(), None)


MARK = AddedToken("<|mark|>", normalized=False, special=True)
GREEDY = AddedToken("<|mark|>", normalized=False, special=True, lstrip=True, rstrip=True)
WIDE = AddedToken("<|wide|>", normalized=True, lstrip=True, rstrip=True)
NORMALIZED = AddedToken("<|mark|>", normalized=True)

PROVEN: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(MARK),
    "byte-level whose added tokens swallow blanks": lambda: byte_level(GREEDY, WIDE),
    "byte-level without some bytes": lambda: byte_level(MARK, size=200),
    "byte-level after NFC": lambda: byte_level(MARK, normalizer=normalizers.NFC()),
    "byte-level after NFC with normalized tokens": lambda: byte_level(NORMALIZED, normalizer=normalizers.NFC()),
    "sentencepiece": lambda: sentencepiece(MARK),
    "sentencepiece with normalized tokens": lambda: sentencepiece(NORMALIZED, WIDE),
    "sentencepiece whose unknown characters share a token": lambda: sentencepiece(MARK, has_bytes=False),
}


@pytest.fixture(scope="module", params=PROVEN)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return PROVEN[request.param]()


@ANY_TEXT
@example(text=" " * 200_000)
@example(text="<|mark|>" + " " * 70_000 + "<|mark|>")
@example(text="e\u0301" * 70_000)
@example(text="\u1fef" * 70_000)
@example(text="".join(PIECES) * 100)
@given(text=TEXTS)
def test_bound_is_never_above_the_number_of_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text, parse_special=False))


def test_longest_tokens_repeated_are_not_counted_too_high(tokenizer: Tokenizer) -> None:
    ids = range(tokenizer.vocab_size)
    words = sorted((tokenizer.decode([id], skip_special=False) for id in ids), key=len)[-60:]
    for word in words:
        assert tokenizer.least_tokens(word * 500) <= len(tokenizer.encode(word * 500))


def test_ordinary_text_has_a_bound_that_is_worth_something(tokenizer: Tokenizer) -> None:
    assert tokenizer.least_tokens("the international understanding " * 1000) > 100


def test_pieces_of_a_long_text_are_joined_without_loss() -> None:
    tokenizer = byte_level(MARK)
    assert tokenizer.least_tokens("1" * 200_000) == tokenizer.least_tokens("1" * 100_000) * 2
    composing = byte_level(MARK, normalizer=normalizers.NFC())
    assert composing.least_tokens("x" * 65_535 + "e\u0301") == composing.least_tokens("x" * 65_535)


def test_default_student_s_bound_holds_for_every_token_and_script(default_gguf: Path) -> None:
    tokenizer = open_source(default_gguf).tokenizer()
    ids = range(tokenizer.vocab_size)
    longest = sorted((tokenizer.decode([id], skip_special=False) for id in ids), key=len)[-200:]
    scripts = ["".join(map(chr, range(start, start + 256))) for start in range(0, 0xD800, 256)]
    for text in (*(word * 50 for word in longest), *scripts, *PIECES):
        assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))
    english = "The quick brown fox jumps over the lazy dog. " * 1000
    assert tokenizer.least_tokens(english) > len(tokenizer.encode(english)) / 8


def test_composing_never_takes_an_ascii_character_that_has_ascii_behind_it() -> None:
    """What the bound after NFC rests on, for every character of this Python's Unicode."""
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x110000)):
        composed = unicodedata.normalize("NFC", f"ab{chr(code)}c")
        assert composed[0] == "a"
        assert composed[-1] == "c"


def add_composed(backend: Backend) -> None:
    backend.normalizer = normalizers.NFC()
    backend.add_tokens(["\u212b"])


UNPROVEN: dict[str, Callable[[Backend], None]] = {
    "a normalizer that drops": lambda one: setattr(one, "normalizer", normalizers.Strip()),
    "a normalizer that replaces": lambda one: setattr(one, "normalizer", normalizers.Replace("aa", "a")),
    "a normalizer that shrinks": lambda one: setattr(one, "normalizer", normalizers.NFKC()),
    "NFC and another": lambda one: setattr(
        one, "normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    ),
    "cuts that drop": lambda one: setattr(
        one,
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]),
    ),
    "blanks that are dropped": lambda one: setattr(
        one, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])
    ),
    "another model": lambda one: setattr(one, "model", models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
    "ends of words in tokens": lambda one: setattr(one, "model", models.BPE({"a": 0}, [], end_of_word_suffix="</w>")),
    "a template without the text": lambda one: setattr(
        one, "post_processor", processors.TemplateProcessing(single="<|mark|>", special_tokens=[("<|mark|>", 1)])
    ),
    "composed added tokens": add_composed,
}


@pytest.mark.parametrize("change", UNPROVEN.values(), ids=UNPROVEN)
def test_nothing_is_claimed_where_nothing_can_be_proven(change: Callable[[Backend], None]) -> None:
    backend = Backend.from_str(byte_level(MARK)._backend.to_str())
    change(backend)
    assert Tokenizer(backend, TokenizerSettings(), None).least_tokens("some text " * 1000) == 0


def test_half_a_surrogate_pair_has_a_bound_too() -> None:
    assert byte_level(MARK).least_tokens("\ud800" * 3) >= 0
