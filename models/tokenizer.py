"""Text to token ids and back, on the `tokenizers` package, with the exact bytes behind every token.

Owns the student folder's tokenizer files. Safe to share between threads: nothing changes after construction
except two caches, whose entries every thread would fill in alike.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from models.chat_template import ChatTemplate
from models.errors import ConfigError, InvalidParameter
from models.least_tokens import find_least_tokens
from models.text_file import read_text
from models.text_guard import TextGuard
from models.thread_priority import behind_others
from models.token_bytes import byte_level_bytes, sentencepiece_bytes

LONG_CHARS = 128 * 1024
"""A longer text takes tens of milliseconds of a processor: others go first."""
TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
CONTROL_TEXT = re.compile(
    r"[<\[][|\uff5c][^<>\[\]|\uff5c]+[|\uff5c][>\]]"  # <|im_start|>; DeepSeek's with wide bars; EXAONE's [|user|]
    r"|</?(?:start|end)_of_\w+>"  # Gemma's turns
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CONTENT)\]|<</?SYS>>"  # Mistral's and Llama 2's
    r"|</?tool_response>"  # Qwen's: around what a tool answered
)
"""How models write what marks turns and the results of tools, which they never write themselves."""
TOKENIZER_FILES = (TOKENIZER_NAME, SETTINGS_NAME, TEMPLATE_NAME)
"""The last one only where the model came with a template."""


class TokenizerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `tokenizer.json` does not say. The keys that transformers knows mean the same there."""

    tokenizer_class: str = "PreTrainedTokenizerFast"
    clean_up_tokenization_spaces: bool = False
    bos_token: str | None = None
    eos_token: str | None = None
    eos_token_ids: tuple[int, ...] = ()


class _Model(msgspec.Struct, frozen=True):
    """Of the model in a `tokenizer.json` what is used here; the merges, which are most of it, are not."""

    type: str
    vocab: dict[str, int] | list[Any]
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False


class _Description(msgspec.Struct, frozen=True):
    """A `tokenizer.json` that the package has read."""

    model: _Model
    added_tokens: list[dict[str, Any]] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class Tokenizer:
    """One model's tokenizer. `chat_template` is None when the model came without one; `guard` keeps special tokens out
    of what users write into a conversation."""

    def __init__(
        self, backend: Backend, settings: TokenizerSettings, template: str | None, written: str | None = None
    ) -> None:
        """`written` is what `backend` was read from, where that is at hand: to have the package write it again takes as
        long as reading it.

        Raises: ConfigError for a tokenizer whose tokens have no fixed bytes, or a damaged template.
        """
        backend.no_truncation()
        backend.no_padding()
        description = _description_of(backend, written)
        added = {int(token["id"]): token for token in description["added_tokens"]}
        self.settings = settings
        self.vocab_size = 1 + max((*_model_ids(description["model"]), *added), default=-1)
        """One more than the largest id: not every id below it must be a token's."""
        self.eos_token_ids = frozenset(settings.eos_token_ids)
        self.bos_token_id: int | None = backend.token_to_id(settings.bos_token) if settings.bos_token else None
        self.chat_template = _compiled(template, settings)
        self._backend = backend
        self._literal_backend: Backend | None = None
        self._guarded: _Guarded | None = None
        self._is_byte_level = _is_byte_level(description)
        self._special_ids = frozenset(id for id, token in added.items() if token["special"])
        self._control = {id: token for id, token in added.items() if self._is_control(id, token["content"])}
        self.guard = TextGuard(token["content"] for token in self._control.values())
        self._is_guard_needed = bool(description["normalizer"]) and any(
            token["normalized"] for token in self._control.values()
        )
        """Whether a text that spells no special token can still become one."""
        self._bytes: dict[int, bytes] = {}
        self._least_tokens = find_least_tokens(description)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read what `save` wrote. Raises: ConfigError that names the file."""
        template_file, tokenizer_file = folder / TEMPLATE_NAME, folder / TOKENIZER_NAME
        written = _read_written(tokenizer_file)
        return cls(
            _backend_of(written, tokenizer_file),
            _read_settings(folder / SETTINGS_NAME),
            template_file.read_text(encoding="utf-8") if template_file.exists() else None,
            written,
        )

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder."""
        (folder / TOKENIZER_NAME).write_text(self._backend.to_str(), encoding="utf-8")
        settings = msgspec.json.format(msgspec.json.encode(self.settings), indent=2)
        (folder / SETTINGS_NAME).write_bytes(settings + b"\n")
        if self.chat_template is not None:
            (folder / TEMPLATE_NAME).write_text(self.chat_template.source, encoding="utf-8")

    def check_fits(self, num_embedded: int, where: Path) -> None:
        """Check that a model with so many embedded tokens knows every one that a text can have. `where` is for the
        message. Raises: ConfigError.
        """
        if self.vocab_size > num_embedded:
            last = self.vocab_size - 1
            raise ConfigError(
                f"{where}: the tokenizer has tokens up to {last} ({self.token_name(last)!r}), but the model's "
                f"embedding has {num_embedded} rows: take the tokenizer that the model was trained with, or enlarge "
                "the model with transformers: model.resize_token_embeddings(len(tokenizer))"
            )

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Ids of a text.

        `add_special` adds the tokens (such as BOS) that the model expects around a raw prompt; a rendered template
        has them already. `parse_special` False reads "<|im_end|>" and the like as ordinary text.
        The interpreter is free meanwhile: `encode_batch_fast` releases it, `encode` does not.
        Raises: InvalidParameter for half a surrogate pair, which JSON can carry and UTF-8 cannot.
        """
        return _ids_of(self._backend if parse_special else self._literal(), text, add_special=add_special)

    def encode_guarded(self, text: str) -> list[int]:
        """Ids of a rendered conversation whose messages `guard` marked: special tokens are those of the template, and
        everything else is text. Raises: InvalidParameter as `encode` does."""
        if not self.guard.is_marked(text) and not self._is_guard_needed:
            return self.encode(text)
        if self._guarded is None:
            self._guarded = _Guarded(self._backend, self._control, self.guard)
        return self._guarded.encode(text)

    def least_tokens(self, text: str) -> int:
        """A bound that the number of the text's tokens is never below, found without tokenising; 0 where this tokenizer
        allows none to be proven."""
        return 0 if self._least_tokens is None else self._least_tokens.of(text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. The interpreter is free meanwhile."""
        text: str = self._backend.decode_batch([list(ids)], skip_special_tokens=skip_special)[0]
        return text

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token stands for; b"" for special tokens and for ids that no token has.

        Joined they equal `decode` of the ids, except for the one leading space that sentencepiece drops there.
        """
        known = self._bytes.get(id)
        if known is None:
            known = self._bytes[id] = self._find_bytes(id)
        return known

    def token_name(self, id: int) -> str:
        """What a token is called, such as `<|im_end|>`; `token_id:N` for an id that no token has."""
        return self._backend.id_to_token(id) or f"token_id:{id}"

    def is_special(self, id: int) -> bool:
        return id in self._special_ids

    def _is_control(self, id: int, text: str) -> bool:
        """Whether a token has its meaning from the template alone. Some models came with marks of turns that are not
        declared special; others that are not (`<think>`) are also in what the model itself writes."""
        return id in self._special_ids or id in self.eos_token_ids or CONTROL_TEXT.fullmatch(text) is not None

    def _find_bytes(self, id: int) -> bytes:
        token: str | None = None if id in self._special_ids else self._backend.id_to_token(id)
        if token is None:
            return b""
        return byte_level_bytes(token) if self._is_byte_level else sentencepiece_bytes(token)

    def _literal(self) -> Backend:
        if self._literal_backend is None:
            self._literal_backend = _literal_copy(self._backend)
        return self._literal_backend


class _Guarded:
    """A tokenizer for which special tokens are text and a stand-in for each is the token: the rest of the text is cut
    as it would be around the token itself."""

    def __init__(self, backend: Backend, control: Mapping[int, Mapping[str, Any]], guard: TextGuard) -> None:
        self._guard = guard
        self._backend = _literal_copy(backend)
        named = {id: token for id, token in control.items() if token["content"]}
        self._backend.add_special_tokens([_like(token, token["content"], special=True) for token in named.values()])
        self._backend.add_tokens(
            [_like(token, guard.stand_ins[token["content"]], special=False) for token in named.values()]
        )
        self._real = {self._backend.token_to_id(guard.stand_ins[one["content"]]): id for id, one in named.items()}

    def encode(self, text: str) -> list[int]:
        ids = _ids_of(self._backend, self._guard.with_stand_ins(text), add_special=False)
        return [self._real.get(id, id) for id in ids]


def _like(token: Mapping[str, Any], text: str, *, special: bool) -> AddedToken:
    """A literal copy of a tokenizer reads those that are special as text, and knows the others."""
    options = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(text, special=special, **options)


def _literal_copy(backend: Backend) -> Backend:
    """One that reads special tokens as text."""
    copy = Backend.from_str(backend.to_str())
    copy.encode_special_tokens = True
    return copy


def _ids_of(backend: Backend, text: str, *, add_special: bool) -> list[int]:
    def encode() -> Any:
        return backend.encode_batch_fast([text], add_special_tokens=add_special)[0]

    try:
        ids: list[int] = (encode() if len(text) <= LONG_CHARS else behind_others(encode)).ids
    except TypeError as error:
        raise InvalidParameter("the text has half a surrogate pair in it; it is not valid Unicode") from error
    return ids


def _compiled(template: str | None, settings: TokenizerSettings) -> ChatTemplate | None:
    if template is None:
        return None
    return ChatTemplate(template, bos_token=settings.bos_token, eos_token=settings.eos_token)


def read_backend(file: Path) -> Backend:
    """Read a `tokenizer.json`. Raises: ConfigError that names the file."""
    return _backend_of(_read_written(file), file)


def _read_written(file: Path) -> str:
    """Raises: ConfigError that names the file."""
    try:
        return read_text(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _backend_of(text: str, file: Path) -> Backend:
    """Raises: ConfigError that names the file."""
    try:
        return Backend.from_str(text)
    except Exception as error:  # the package raises bare Exception
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _read_settings(file: Path) -> TokenizerSettings:
    try:
        return msgspec.json.decode(file.read_bytes(), type=TokenizerSettings)
    except FileNotFoundError:
        raise ConfigError(f"{file} is missing; build the student again with `fenhe build`") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} cannot be read: {error}; build the student again with `fenhe build`") from error


def _description_of(backend: Backend, written: str | None) -> dict[str, Any]:
    """What a `tokenizer.json` says, its merges left out: the one in `written` if it is as the package writes it. Others
    may leave out what the package knows, or number added tokens otherwise than it does."""
    if written is not None:
        with contextlib.suppress(msgspec.DecodeError):
            description = _decoded(written)
            if all(backend.id_to_token(one["id"]) == one["content"] for one in description["added_tokens"]):
                return description
    return _decoded(backend.to_str())


def _decoded(written: str) -> dict[str, Any]:
    """Raises: msgspec.DecodeError."""
    description = msgspec.json.decode(written, type=_Description)
    return msgspec.structs.asdict(description) | {"model": msgspec.structs.asdict(description.model)}


def _model_ids(model: dict[str, Any]) -> Iterable[int]:
    """Ids of the tokens that were not added: a vocabulary is numbered, or gives them in the order of a list."""
    vocabulary = model["vocab"]
    return vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))


def _is_byte_level(description: dict[str, Any]) -> bool:
    """Which of the two kinds of tokens with fixed bytes this is. Raises: ConfigError for any other kind."""
    kinds = {decoder["type"] for decoder in _decoders(description.get("decoder"))}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"ByteFallback", "Metaspace"}:
        return False
    found = ", ".join(sorted(kinds)) or "none"
    raise ConfigError(f"this tokenizer's decoder ({found}) is not supported, only byte-level and sentencepiece ones")


def _decoders(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for inner in decoder["decoders"]:
        yield from _decoders(inner)
