"""Constrained decoding: a grammar compiled for one vocabulary, and how far one sequence has got in it.

The only file that knows the grammar library (`llguidance`). What a grammar is for is decided in `server/`.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from engines.grammar_words import UNKNOWN, explain
from models.errors import ConfigError, GrammarFailed, InvalidParameter

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLParserLimits

logger = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int64]

WHITESPACE = r"( |\r?\n( {0,32}|\t{0,8}))"
"""What may stand between the parts of a JSON text. Bounded: small models tend to write blanks forever."""

_OPTIONS = {"x-guidance": {"whitespace_pattern": WHITESPACE}}

MAX_THREADS = 8
WORD_BITS = 32

# A grammar from outside must cost the engine's steps a bounded time and memory, whatever is in it: about 10 ms and
# 40 MB at worst, and microseconds in practice. The widest schemas that the server takes need half of the items.
MAX_INITIAL_FUEL = 1_000_000
MAX_STEP_FUEL = 100_000
MAX_STEP_ITEMS = 20_000
MAX_ROW_ITEMS = 2000
MAX_LEXER_STATES = 20_000
MAX_GRAMMAR_SYMBOLS = 200_000

MAX_GBNF_CHARS = 4096
"""It is translated in the server itself, in tens of milliseconds."""

HEADER = '%llguidance {"no_forcing": true}\n'
"""Masks allow every token that is legal, not only the usual way to spell what has to come."""


class Vocabulary(Protocol):
    """What is needed of a tokenizer (`models.tokenizer.Tokenizer`)."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...

    def is_special(self, token_id: int, /) -> bool: ...

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]: ...


def json_body(schema: Mapping[str, Any]) -> str:
    """The part of a grammar's text that stands for a JSON value of this schema."""
    return "%json " + json.dumps({**schema, **_OPTIONS})


def literal(text: str) -> str:
    """The part of a grammar's text that stands for exactly these characters."""
    return json.dumps(text)


def regex_body(pattern: str) -> str:
    """The part of a grammar's text that stands for what a regular expression matches as a whole."""
    escaped = re.sub(r"\\.|/|\n|\r", _in_slashes, pattern, flags=re.DOTALL)
    return f"/{escaped}/"


def _in_slashes(match: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n"}.get(match[0], match[0])


def choice_body(choices: Sequence[str]) -> str:
    """The part of a grammar's text that stands for one of these texts."""
    return " | ".join(map(literal, choices))


def grammar_body(text: str) -> str:
    """The part of a grammar's text that stands for a grammar of its own, in Lark's form or in GBNF.

    Raises: InvalidParameter for a text that is neither.
    """
    _require_library()
    from llguidance.gbnf_to_lark import any_to_lark, is_lark_syntax

    if len(text) > MAX_GBNF_CHARS and not is_lark_syntax(text):
        raise InvalidParameter(f"a GBNF grammar has at most {MAX_GBNF_CHARS} characters; send it in Lark's form")
    try:
        lark: str = any_to_lark(text)
    except Exception as error:  # the package raises bare Exception
        first = " ".join(str(error).split())[:200]
        raise InvalidParameter(
            f"it is neither a Lark grammar with a rule `start` nor GBNF with `root`: {first}"
        ) from error
    return "%lark {\n" + re.sub(r"(?m)^[ \t]*%llguidance\b.*$", "", lark) + "\n}"


def schema_problem(schema: Mapping[str, Any]) -> str | None:
    """Why no grammar can be made of a schema, in the library's words, which `explain` puts in ours; None when it can.
    Needs no vocabulary."""
    _require_library()
    from llguidance import LLMatcher

    source = LLMatcher.grammar_from_json_schema(json.dumps({**schema, **_OPTIONS}))
    try:
        is_wrong, messages = LLMatcher.validate_grammar_with_warnings(source, limits=_limits())
    except BaseException as error:  # a panic in Rust is no Exception and would pass every handler
        if type(error).__name__ != "PanicException":
            raise
        return UNKNOWN
    return " ".join("; ".join(messages).split()) if is_wrong or messages else None


class Wrapped:
    """Our tokenizer in the form the library expects, with exactly the bytes that the engine turns into text.

    Special tokens, and ids that no token has, are empty: those are never legal.
    """

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, num_logits: int) -> None:
        num_known = vocabulary.vocab_size
        self.eos_token_id = min(vocabulary.eos_token_ids)
        self.tokens = [vocabulary.token_bytes(id) if id < num_known else b"" for id in range(num_logits)]
        self.special_token_ids = [id for id in range(num_known) if vocabulary.is_special(id)]
        self._vocabulary = vocabulary

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.encode(text, parse_special=False)


class _Start:
    """Holds a grammar's compiled start state outside the dataclass fields, so that equality ignores it."""

    __slots__ = ("__weakref__", "_source", "_start")
    _source: str
    _start: "LLMatcher"


@dataclass(slots=True, kw_only=True, frozen=True)
class Grammar(_Start):
    """A compiled grammar, shared by all sequences that follow it. Equal when text and vocabulary size are."""

    digest: str
    vocab_size: int

    @property
    def source(self) -> str:
        """Its text, for an engine that compiles it by itself."""
        return self._source

    def matcher(self) -> "Matcher":
        return Matcher(self._start.deep_copy(), self.vocab_size)


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Slow to make (about 0.3 s). Threads may share it."""

    def __init__(self, vocabulary: Vocabulary, num_logits: int) -> None:
        """`num_logits` is the width of the model's logits; models pad their vocabularies.

        Raises: ConfigError without the library; InvalidParameter for a vocabulary that cannot say where to end.
        """
        _require_library()
        from llguidance import LLTokenizer, TokenizerWrapper

        if not vocabulary.eos_token_ids:
            raise InvalidParameter("this student's tokenizer has no end token, so its answers cannot follow a grammar")
        self._num_logits = num_logits
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(Wrapped(vocabulary, num_logits)),
            n_vocab=num_logits,
            eos_token=sorted(vocabulary.eos_token_ids),
        )

    def compile(self, source: str) -> Grammar:
        """Raises: InvalidParameter for a grammar that is wrong, too large, or matches no text."""
        from llguidance import LLMatcher

        start = LLMatcher(self._tokenizer, HEADER + source, log_level=0, limits=_limits())
        if not start.is_error():
            # Some grammars match no text at all, which shows only when their first token is asked for.
            start.compute_bitmask()
        if start.is_error():
            raise InvalidParameter(explain(start.get_error()).words)
        grammar = Grammar(digest=hashlib.sha256(source.encode()).hexdigest(), vocab_size=self._num_logits)
        object.__setattr__(grammar, "_start", start)
        object.__setattr__(grammar, "_source", HEADER + source)
        return grammar


class Matcher:
    """How far one sequence has got in its grammar. Owned by the engine thread; moves only when a step commits."""

    __slots__ = ("library", "vocab_size")

    def __init__(self, library: "LLMatcher", vocab_size: int) -> None:
        self.library = library
        self.vocab_size = vocab_size

    @property
    def is_finished(self) -> bool:
        """Whether the text is complete and nothing but the end can follow."""
        return self.library.is_stopped() and not self.library.is_error()

    def allows(self, token_id: int) -> bool:
        """Whether this token may come next; much cheaper than asking for all that may."""
        return not self.library.is_error() and self.library.validate_tokens([token_id]) == 1

    def advance(self, token_id: int) -> None:
        """Take a token. Raises: GrammarFailed when it is not legal, or the grammar grew beyond its bounds."""
        # In its error state the library still takes the end token.
        if self.library.is_error() or not self.library.consume_token(token_id):
            reason = (self.library.get_error() or "the token is not legal").splitlines()[0]
            logger.debug("grammar failed reason=%s", reason[:200])
            raise GrammarFailed("the answer could not be kept within its grammar: it is too large, or does not end")


class Masks:
    """Legal tokens of many sequences at once, in the library's own threads."""

    def __init__(self) -> None:
        self._executor: LLExecutor | None = None

    def legal_tokens(self, matchers: Sequence[Matcher]) -> list[Tokens]:
        """What may come next in each, by token id; nothing where a matcher has failed.

        Matchers share one vocabulary. A matcher that runs into its bounds here refuses every token afterwards.
        """
        num_words = -(-matchers[0].vocab_size // WORD_BITS)
        bits = np.zeros((len(matchers), num_words), np.uint32)
        if len(matchers) == 1:
            matchers[0].library.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        else:
            rows = [(matcher.library, row) for row, matcher in enumerate(matchers)]
            self._threads().unsafe_compute_mask_ptr(rows, bits.ctypes.data, num_words * 4, len(matchers))
        flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").view(np.bool_)
        return [np.flatnonzero(row) for row in flags]

    def _threads(self) -> "LLExecutor":
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))
        return self._executor


def _limits() -> "LLParserLimits":
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=MAX_INITIAL_FUEL,
        max_items_in_row=MAX_ROW_ITEMS,
        step_lexer_fuel=MAX_STEP_FUEL,
        step_max_items=MAX_STEP_ITEMS,
        max_lexer_states=MAX_LEXER_STATES,
        max_grammar_size=MAX_GRAMMAR_SYMBOLS,
        verbose_errors=False,
    )


def _require_library() -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"structured output and tools need the package llguidance, which is missing ({error}): "
            "`pip install llguidance`"
        ) from error
