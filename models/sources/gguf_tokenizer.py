"""Builds a tokenizer from the vocabulary inside a GGUF file.

Two kinds: byte-level BPE (`gpt2`) and sentencepiece BPE (`llama`). Anything else is refused by name.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from models.errors import ConfigError, WeightsError
from models.sources.gguf_header import GgufHeader
from models.token_bytes import SPACE_MARK
from models.tokenizer import Tokenizer, TokenizerSettings


class TokenKind(IntEnum):
    """Source: llama.cpp, `llama_token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


END_TOKENS = frozenset({"<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>"})
"""Control tokens that end a turn or a text even where the file names only one of them as its end."""

_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2_SPLIT,),
    "smollm": (r"\p{N}", _GPT2_SPLIT),
    "qwen2": (_QWEN2_SPLIT,),
    "llama-bpe": (_LLAMA3_SPLIT,),
    "tekken": (_TEKKEN_SPLIT,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_SPLIT, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
"""Patterns that split text before merging, by `tokenizer.ggml.pre`. Source: llama.cpp, `llm_tokenizer_bpe`."""

_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "tekken"})
"""Vocabularies whose words are taken whole where they are tokens, whatever the merges say."""


def build_tokenizer(header: GgufHeader) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises: ConfigError for a kind that is not supported, WeightsError for a damaged vocabulary.
    """
    kind = header.require("tokenizer.ggml.model", str)
    tokens = _tokens(header)
    try:
        backend = _builder(header, kind)(header, tokens)
    except ConfigError:
        raise
    except Exception as error:  # the package raises bare Exception
        raise WeightsError(f"{header.file}: its vocabulary cannot be used: {error}") from error
    _add_marked_tokens(backend, header, tokens)
    _add_surroundings(backend, header, kind, tokens)
    settings = TokenizerSettings(
        bos_token=_named_token(header, "bos", tokens),
        eos_token=_named_token(header, "eos", tokens),
        eos_token_ids=tuple(sorted(_end_ids(header, tokens))),
    )
    return Tokenizer(backend, settings, header.find("tokenizer.chat_template", str))


def _builder(header: GgufHeader, kind: str) -> Callable[[GgufHeader, list[str]], Backend]:
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ConfigError(
            f"{header.file}: tokenizers of the kind {kind!r} are not supported, only {', '.join(builders)}"
        )
    return builders[kind]


def _byte_level(header: GgufHeader, tokens: list[str]) -> Backend:
    pre = header.find("tokenizer.ggml.pre", str) or "default"
    if pre not in SPLITS:
        raise ConfigError(f"{header.file}: the pre-tokenizer {pre!r} is not supported, only {', '.join(SPLITS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in header.require("tokenizer.ggml.merges", list)]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    backend = Backend(BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS[pre]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(header: GgufHeader, tokens: list[str]) -> Backend:
    scores = header.require("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise WeightsError(f"{header.file}: {len(scores)} scores for {len(tokens)} tokens")
    unknown = _named_token(header, "unknown", tokens)
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges = merges_from_scores(vocabulary, scores)
    backend = Backend(BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    has_prefix = header.find("tokenizer.ggml.add_space_prefix", bool) is not False
    prefix = [normalizers.Prepend(SPACE_MARK)] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE_MARK)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    spaces = decoders.Replace(SPACE_MARK, " ")
    backend.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def merges_from_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges that a sentencepiece BPE vocabulary implies: every way to make a token, best token first.

    Source: transformers, `generate_merges` in its slow-tokenizer conversion.
    """
    ranked = []
    for token, id in vocabulary.items():
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        made = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        ranked += [(-scores[id], vocabulary[left], vocabulary[right], left, right) for left, right in made]
    return [(left, right) for *_, left, right in sorted(ranked)]


def _tokens(header: GgufHeader) -> list[str]:
    tokens: list[str] = header.require("tokenizer.ggml.tokens", list)
    if len(set(tokens)) != len(tokens):
        raise WeightsError(f"{header.file}: its vocabulary has a token twice")
    return tokens


def _token_kinds(header: GgufHeader, tokens: list[str]) -> list[int]:
    kinds: list[int] = header.find("tokenizer.ggml.token_type", list) or [TokenKind.NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise WeightsError(f"{header.file}: {len(kinds)} token types for {len(tokens)} tokens")
    return kinds


def _add_marked_tokens(backend: Backend, header: GgufHeader, tokens: list[str]) -> None:
    """Control tokens become special; user-defined ones are matched whole in text, but stay ordinary text."""
    kinds = list(zip(tokens, _token_kinds(header, tokens), strict=True))
    special = [token for token, kind in kinds if kind in (TokenKind.CONTROL, TokenKind.UNKNOWN)]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    plain = [token for token, kind in kinds if kind == TokenKind.USER_DEFINED]
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])


def _add_surroundings(backend: Backend, header: GgufHeader, kind: str, tokens: list[str]) -> None:
    """Make the backend add BOS and EOS around a raw prompt where the file says so."""
    pre = header.find("tokenizer.ggml.pre", str)
    adds_bos = header.find("tokenizer.ggml.add_bos_token", bool)
    if adds_bos is None:
        adds_bos = kind == "llama" or pre in ("llama-bpe", "tekken")
    adds_eos = header.find("tokenizer.ggml.add_eos_token", bool) or False
    _surround(
        backend,
        before=_named_token(header, "bos", tokens) if adds_bos else None,
        after=_named_token(header, "eos", tokens) if adds_eos else None,
    )


def _surround(backend: Backend, *, before: str | None, after: str | None) -> None:
    """Make `encode(add_special=True)` put these tokens around a text."""
    names = [name for name in (before, "$A", after) if name is not None]
    special = [(name, backend.token_to_id(name)) for name in (before, after) if name is not None]
    backend.post_processor = processors.TemplateProcessing(single=names, special_tokens=sorted(set(special)))


def _named_token(header: GgufHeader, role: str, tokens: list[str]) -> str | None:
    id = header.find(f"tokenizer.ggml.{role}_token_id", int)
    if id is None:
        return None
    if not 0 <= id < len(tokens):
        key = f"tokenizer.ggml.{role}_token_id"
        raise WeightsError(
            f"{header.file}: the {role} token {id} is outside the vocabulary of {len(tokens)}; correct it with "
            f"gguf-set-metadata of the gguf package: gguf-set-metadata FILE {key} ID"
        )
    return tokens[id]


def _end_ids(header: GgufHeader, tokens: list[str]) -> set[int]:
    named: list[Any] = [_named_token(header, role, tokens) for role in ("eos", "eot", "eom")]
    kinds = _token_kinds(header, tokens)
    marked = {id for id, token in enumerate(tokens) if token in END_TOKENS and kinds[id] == TokenKind.CONTROL}
    return marked | {tokens.index(token) for token in named if token is not None}
