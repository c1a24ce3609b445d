"""Text to token ids and back, on the `tokenizers` package, with the exact bytes behind every token.

Owns the student folder's tokenizer files. Safe to share between threads: nothing changes after construction
except two caches, whose entries every thread would fill in alike.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer as Backend

from models.chat_template import ChatTemplate
from models.errors import ConfigError, InvalidParameter
from models.least_tokens import find_least_tokens
from models.text_file import read_text
from models.token_bytes import byte_level_bytes, sentencepiece_bytes

TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
TOKENIZER_FILES = (TOKENIZER_NAME, SETTINGS_NAME, TEMPLATE_NAME)
"""The last one only where the model came with a template."""


class TokenizerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `tokenizer.json` does not say. The keys that transformers knows mean the same there."""

    tokenizer_class: str = "PreTrainedTokenizerFast"
    clean_up_tokenization_spaces: bool = False
    bos_token: str | None = None
    eos_token: str | None = None
    eos_token_ids: tuple[int, ...] = ()


class Tokenizer:
    """One model's tokenizer. `chat_template` is None when the model came without one."""

    def __init__(self, backend: Backend, settings: TokenizerSettings, template: str | None) -> None:
        """Raises: ConfigError for a tokenizer whose tokens have no fixed bytes, or a damaged template."""
        backend.no_truncation()
        backend.no_padding()
        description = json.loads(backend.to_str())
        added = {int(token["id"]): token for token in description["added_tokens"]}
        self.settings = settings
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        """One more than the largest id: not every id below it must be a token's."""
        self.eos_token_ids = frozenset(settings.eos_token_ids)
        self.bos_token_id: int | None = backend.token_to_id(settings.bos_token) if settings.bos_token else None
        self.chat_template = _compiled(template, settings)
        self._backend = backend
        self._literal_backend: Backend | None = None
        self._is_byte_level = _is_byte_level(description)
        self._special_ids = frozenset(id for id, token in added.items() if token["special"])
        self._bytes: dict[int, bytes] = {}
        self._least_tokens = find_least_tokens(description)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read what `save` wrote. Raises: ConfigError that names the file."""
        template_file = folder / TEMPLATE_NAME
        return cls(
            read_backend(folder / TOKENIZER_NAME),
            _read_settings(folder / SETTINGS_NAME),
            template_file.read_text(encoding="utf-8") if template_file.exists() else None,
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
        backend = self._backend if parse_special else self._literal()
        try:
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=add_special)[0].ids
        except TypeError as error:
            raise InvalidParameter("the text has half a surrogate pair in it; it is not valid Unicode") from error
        return ids

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

    def _find_bytes(self, id: int) -> bytes:
        token: str | None = None if id in self._special_ids else self._backend.id_to_token(id)
        if token is None:
            return b""
        return byte_level_bytes(token) if self._is_byte_level else sentencepiece_bytes(token)

    def _literal(self) -> Backend:
        if self._literal_backend is None:
            backend = Backend.from_str(self._backend.to_str())
            backend.encode_special_tokens = True
            self._literal_backend = backend
        return self._literal_backend


def _compiled(template: str | None, settings: TokenizerSettings) -> ChatTemplate | None:
    if template is None:
        return None
    return ChatTemplate(template, bos_token=settings.bos_token, eos_token=settings.eos_token)


def read_backend(file: Path) -> Backend:
    """Read a `tokenizer.json`. Raises: ConfigError that names the file."""
    try:
        return Backend.from_str(read_text(file))
    except ConfigError:
        raise
    except Exception as error:  # the package raises bare Exception
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _read_settings(file: Path) -> TokenizerSettings:
    try:
        return msgspec.json.decode(file.read_bytes(), type=TokenizerSettings)
    except FileNotFoundError:
        raise ConfigError(f"{file} is missing; build the student again with `fenhe build`") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} cannot be read: {error}; build the student again with `fenhe build`") from error


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
