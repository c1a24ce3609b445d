"""The least number of tokens that a text can have: proven from the vocabulary, without tokenising.

A byte weighs 1 over the length, in bytes, of the longest token that has it. A token's bytes then weigh 1 together at
most, so that a text has at least as many tokens as its bytes weigh. Bytes that may be dropped, or be swallowed by a
neighbour, weigh nothing; where a tokenizer does anything to a text that is not known here, nothing is proven.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from models.token_bytes import SPACE_MARK, byte_alphabet

Unit = TypeVar("Unit")

ONE = 1 << 20
"""What a token weighs at most. Weights are whole numbers, rounded down."""
PIECE_BYTES = 1 << 16
"""So much of a text is weighed at a time: the interpreter is free between two pieces."""
KEEPING = frozenset({"Split", "Digits", "Punctuation", "ByteLevel", "Metaspace"})
"""Pre-tokenizers that keep every character, unless they say `Removed`."""
ADDING = frozenset({"TemplateProcessing", "ByteLevel"})
"""Post-processors that drop no token of the text."""
BLANKS = b"\t\n\v\f\r "
_FIRST_BYTE_BEYOND_ASCII = 0x80


class LeastTokens:
    """Immutable, so safe from any thread."""

    def __init__(self, weights: npt.NDArray[np.int64], *, composes: bool) -> None:
        """Shapes: weights [256]. `composes`: characters beyond ASCII may join with what is before them."""
        self._weights = weights
        self._composes = composes

    def of(self, text: str) -> int:
        """How many tokens the text has at least."""
        data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        pieces = range(0, len(data), PIECE_BYTES)
        return -(-sum(self._weigh(data[start : start + PIECE_BYTES + 1]) for start in pieces) // ONE)

    def _weigh(self, piece: npt.NDArray[np.uint8]) -> int:
        """What the first bytes of a piece weigh; the one behind them says whether the last of them stands alone."""
        own = piece[:PIECE_BYTES]
        if self._composes:
            stays = own < _FIRST_BYTE_BEYOND_ASCII
            stays[: len(piece) - 1] &= piece[1:] < _FIRST_BYTE_BEYOND_ASCII
            own = own[stays]
        return int(np.bincount(own, minlength=256) @ self._weights)


def find_least_tokens(description: dict[str, Any]) -> LeastTokens | None:
    """`description` is a parsed tokenizer.json. None: nothing can be proven."""
    normalizers = list(_parts(description.get("normalizer"), "normalizers"))
    cuts = list(_parts(description.get("pre_tokenizer"), "pretokenizers"))
    afterwards = list(_parts(description.get("post_processor"), "processors"))
    model = description["model"]
    if not (_merges_bytes(model) and all(map(_keeps, cuts)) and all(map(_keeps_tokens, afterwards))):
        return None
    added = description["added_tokens"]
    kinds = [one["type"] for one in normalizers]
    num_byte_levels = sum(cut["type"] == "ByteLevel" for cut in cuts)
    if num_byte_levels == 1 and kinds in ([], ["NFC"]) and not any(cut["type"] == "Metaspace" for cut in cuts):
        return _of_byte_level(model["vocab"], added, composes=bool(kinds))
    if num_byte_levels == 0 and all(map(_marks_spaces, normalizers)):
        return _of_sentencepiece(model, added)
    return None


def _parts(part: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for inner in part[name]:
        yield from _parts(inner, name)


def _merges_bytes(model: dict[str, Any]) -> bool:
    has_affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    return model["type"] == "BPE" and not has_affixes


def _keeps(cut: dict[str, Any]) -> bool:
    return (
        cut["type"] in KEEPING and cut.get("behavior") != "Removed" and cut.get("replacement", SPACE_MARK) == SPACE_MARK
    )


def _keeps_tokens(processor: dict[str, Any]) -> bool:
    """A template must have the text in it."""
    single = processor.get("single", [{"Sequence": {"id": "A"}}])
    return processor["type"] in ADDING and any(part.get("Sequence", {}).get("id") == "A" for part in single)


def _marks_spaces(normalizer: dict[str, Any]) -> bool:
    """Whether all that it does is to write spaces as marks, or to put a text before the other."""
    is_replacement = normalizer.get("pattern") == {"String": " "} and normalizer.get("content") == SPACE_MARK
    return normalizer["type"] == "Prepend" or (normalizer["type"] == "Replace" and is_replacement)


def _of_byte_level(vocabulary: dict[str, int], added: list[dict[str, Any]], *, composes: bool) -> LeastTokens | None:
    if composes and not all(token["content"].isascii() for token in added):
        return None  # what is added may be composed too
    alphabet = [character for _, character in sorted(byte_alphabet().items())]
    spelled = ("".join(alphabet[byte] for byte in token["content"].encode()) for token in added)
    tokens = (*vocabulary, *spelled)
    longest = _longest(zip(tokens, map(len, tokens), strict=True))
    # a byte without a token is dropped
    weights = np.array([ONE // longest[one] if one in vocabulary else 0 for one in alphabet])
    return LeastTokens(_without_blanks(weights, added), composes=composes)


def _of_sentencepiece(model: dict[str, Any], added: list[dict[str, Any]]) -> LeastTokens:
    vocabulary = model["vocab"]
    others = (SPACE_MARK + token["content"] for token in added)
    longest = _longest(map(_marked, (*vocabulary, *others)))
    weights = np.array([ONE // longest.get(byte, 1) for byte in range(256)])
    if not (model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))):
        known = [chr(byte).replace(" ", SPACE_MARK) in vocabulary for byte in range(_FIRST_BYTE_BEYOND_ASCII)]
        weights[:_FIRST_BYTE_BEYOND_ASCII][~np.array(known)] = 0  # unknown characters may share a token, or have none
        weights[_FIRST_BYTE_BEYOND_ASCII:] = 0
    return LeastTokens(_without_blanks(weights, added), composes=False)


def _marked(token: str) -> tuple[bytes, int]:
    """The bytes that a sentencepiece token may stand for, and how many at most: a mark is a space or itself."""
    data = token.replace(" ", SPACE_MARK).encode()
    return (data + b" " if SPACE_MARK in token or " " in token else data), len(data)


def _longest(tokens: Iterable[tuple[Iterable[Unit], int]]) -> dict[Unit, int]:
    """For every unit that tokens are made of the length of the longest token that has it."""
    longest: dict[Unit, int] = {}
    by_length: dict[int, list[Iterable[Unit]]] = {}
    for units, length in tokens:
        by_length.setdefault(length, []).append(units)
    for length in sorted(by_length, reverse=True):
        units = set(chain.from_iterable(by_length[length]))
        longest.update(dict.fromkeys(units - longest.keys(), length))
    return longest


def _without_blanks(weights: npt.NDArray[np.int64], added: list[dict[str, Any]]) -> npt.NDArray[np.int64]:
    """Some added tokens swallow all blanks beside them; beyond ASCII there are blanks of several bytes."""
    if any(token["lstrip"] or token["rstrip"] for token in added):
        weights[list(BLANKS)] = 0
        weights[_FIRST_BYTE_BEYOND_ASCII:] = 0
    return weights
