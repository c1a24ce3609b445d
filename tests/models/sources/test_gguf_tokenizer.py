from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import ConfigError, WeightsError
from models.sources.gguf_header import GgufHeader
from models.sources.gguf_tokenizer import build_tokenizer
from models.sources.source import open_source
from models.token_bytes import SPACE_MARK
from models.tokenizer import Tokenizer

WORDS = "the quick brown fox jumps over the lazy dog and the other foxes jump over it too"
SENTENCES = [WORDS, " two  spaces", "x", "the\nfox", "é 中", "thefox the fox", "<s>the", "fox</s> the"]


def header_of(metadata: dict[str, Any]) -> GgufHeader:
    return GgufHeader(file=Path("vocabulary.gguf"), metadata=metadata, tensors={})


def tiny_metadata(tiny_source: Any, tiny_gguf: Any, **options: Any) -> dict[str, Any]:
    from models.sources.gguf_header import read_header

    return read_header(tiny_gguf(tiny_source("llama"), **options)).metadata


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_gguf_tokenizer_equals_the_one_it_was_made_of(tiny_pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    ours, original = tiny_pair
    assert ours.encode(text) == original.encode(text)


@pytest.fixture
def tiny_pair(tiny_source: Any, tiny_gguf: Any) -> tuple[Tokenizer, Tokenizer]:
    folder = tiny_source("llama")
    return open_source(tiny_gguf(folder)).tokenizer(), open_source(folder).tokenizer()


def test_gguf_tokenizer_carries_template_and_ends(tiny_pair: tuple[Tokenizer, Tokenizer]) -> None:
    ours, original = tiny_pair
    assert ours.chat_template is not None
    assert original.chat_template is not None
    assert ours.chat_template.source == original.chat_template.source
    assert ours.eos_token_ids == {0, 2}
    assert ours.bos_token_id == 1
    assert [ours.is_special(id) for id in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "ab 12don't", ["ab", " ", "1", "2", "don", "'t"]),
        ("gpt-2", "ab 12don't", ["ab", " 12", "don", "'t"]),
        ("qwen2", "ab 12DON'T\n\nx", ["ab", " ", "1", "2", "DON", "'T", "\n\n", "x"]),
        ("llama-bpe", "ab 1234(x)", ["ab", " ", "123", "4", "(x", ")"]),
        ("tekken", "abCd 12/\n", ["ab", "Cd", " ", "1", "2", "/\n"]),
        ("default", "ab 1234$x", ["ab", " ", "123", "4", "$", "x"]),
    ],
)
def test_gguf_tokenizer_cuts_text_as_its_family_does(pre: str, text: str, pieces: list[str]) -> None:
    """With every run of these characters mergeable, what comes out whole is exactly what was cut out."""
    assert cut_by(pre, text) == pieces


def cut_by(pre: str, text: str) -> list[str]:
    from models.token_bytes import byte_alphabet

    spelled = "".join(byte_alphabet()[byte] for byte in text.encode())
    runs = {spelled[i:j] for i in range(len(spelled)) for j in range(i + 1, len(spelled) + 1)}
    tokens = sorted(runs, key=lambda run: (len(run), run))
    merges = [f"{run[:cut]} {run[cut:]}" for run in tokens for cut in range(1, len(run))]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
    }
    tokenizer = build_tokenizer(header_of(metadata))
    return [tokenizer.token_bytes(id).decode() for id in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("changes", "surrounded"),
    [
        ({}, [5]),
        ({"tokenizer.ggml.add_bos_token": True}, [1, 5]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [1, 5, 2]),
    ],
)
def test_gguf_tokenizer_surrounds_a_prompt(
    tiny_source: Any, tiny_gguf: Any, changes: dict[str, Any], surrounded: list[int]
) -> None:
    tokenizer = build_tokenizer(header_of(tiny_metadata(tiny_source, tiny_gguf) | changes))
    text = tokenizer.decode([5])
    assert tokenizer.encode(text, add_special=True) == surrounded
    assert tokenizer.encode(text) == [5]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, ConfigError, "'bert'"),
        ({"tokenizer.ggml.pre": "deepseek-coder"}, ConfigError, "'deepseek-coder'"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, WeightsError, "a token twice"),
        ({"tokenizer.ggml.merges": ["zzz yyy"]}, WeightsError, "cannot be used"),
        ({"tokenizer.ggml.merges": ["a"]}, WeightsError, "cannot be used"),
        ({"tokenizer.ggml.token_type": [1]}, WeightsError, "1 token types for 320 tokens"),
        ({"tokenizer.ggml.eos_token_id": 320}, WeightsError, "eos token 320"),
    ],
)
def test_gguf_tokenizer_refuses_by_name(
    tiny_source: Any, tiny_gguf: Any, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    metadata = tiny_metadata(tiny_source, tiny_gguf) | changes
    with pytest.raises(kind, match=words):
        build_tokenizer(header_of(metadata))


@pytest.fixture(scope="module")
def sentencepiece_metadata() -> dict[str, Any]:
    """A vocabulary like that of a sentencepiece BPE model: bytes, then pieces in merge order."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import normalizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    backend = Backend(BPE())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)])
    backend.train_from_iterator([WORDS] * 3, BpeTrainer(vocab_size=60, show_progress=False))
    learned = sorted(backend.get_vocab(), key=lambda piece: (len(piece) == 1, backend.token_to_id(piece)))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    ranks = [0.0] * 259 + [-float(rank) for rank in range(len(learned))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": ranks,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(learned),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def best_pair_first(text: str, scores: dict[str, float]) -> list[str]:
    """Sentencepiece's BPE in its plainest form: merge the best-scored neighbours, leftmost first."""
    pieces = list(text)
    while True:
        joined = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not joined:
            return pieces
        i = min(joined)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="thequickbrownfx ", min_size=1, max_size=40))
def test_sentencepiece_tokenizer_merges_best_first(sentencepiece_metadata: dict[str, Any], text: str) -> None:
    tokenizer = build_tokenizer(header_of(sentencepiece_metadata))
    tokens, scores = (sentencepiece_metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores"))
    known = dict(zip(tokens, scores, strict=True))
    expected = best_pair_first(SPACE_MARK + text.replace(" ", SPACE_MARK), known)
    assert [tokens[id] for id in tokenizer.encode(text)] == expected


@pytest.mark.parametrize("text", SENTENCES)
def test_sentencepiece_tokenizer_gives_back_text(sentencepiece_metadata: dict[str, Any], text: str) -> None:
    tokenizer = build_tokenizer(header_of(sentencepiece_metadata))
    ids = tokenizer.encode(text, add_special=True)
    assert ids[0] == 1
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("é"))) == " é".encode()


def test_sentencepiece_tokenizer_without_prefix_adds_no_space(sentencepiece_metadata: dict[str, Any]) -> None:
    tokenizer = build_tokenizer(header_of(sentencepiece_metadata | {"tokenizer.ggml.add_space_prefix": False}))
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("the"))) == b"the"


def test_sentencepiece_tokenizer_needs_its_scores(sentencepiece_metadata: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="1 scores"):
        build_tokenizer(header_of(sentencepiece_metadata | {"tokenizer.ggml.scores": [0.0]}))
