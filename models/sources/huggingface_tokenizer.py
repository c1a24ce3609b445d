"""Reads the tokenizer of a Hugging Face model folder: tokenizer.json, and around it four optional files."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from models.errors import ConfigError
from models.sources.huggingface_config import CONFIG_NAME, HuggingFaceConfig
from models.text_file import read_json, read_text
from models.tokenizer import (
    SETTINGS_NAME,
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    Tokenizer,
    TokenizerSettings,
    read_backend,
)

logger = logging.getLogger(__name__)

JSON_TEMPLATE_NAME = "chat_template.json"
GENERATION_NAME = "generation_config.json"

T = TypeVar("T", bound=msgspec.Struct)

TokenText = str | dict[str, Any] | None


class NamedTemplate(msgspec.Struct, frozen=True):
    name: str
    template: str


class TokenizerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a `tokenizer_config.json` that matter here.

    Not `add_bos_token`: beside a tokenizer.json, whose post-processor decides, transformers 5 ignores it too.
    """

    bos_token: TokenText = None
    eos_token: TokenText = None
    chat_template: str | list[NamedTemplate] | None = None


class GenerationConfig(msgspec.Struct, frozen=True):
    eos_token_id: int | tuple[int, ...] | None = None


class JsonTemplate(msgspec.Struct, frozen=True):
    chat_template: str


def read_tokenizer(folder: Path, config: HuggingFaceConfig) -> Tokenizer:
    """The tokenizer of a model folder; end tokens are the union of what its files name.

    Raises: ConfigError that names the file at fault.
    """
    if not (folder / TOKENIZER_NAME).exists():
        raise ConfigError(
            f"{folder} has no {TOKENIZER_NAME}; make one with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    backend = read_backend(folder / TOKENIZER_NAME)
    texts = _read_optional(folder / SETTINGS_NAME, TokenizerConfig) or TokenizerConfig()
    bos, eos = _token_text(texts.bos_token), _token_text(texts.eos_token)
    generation = _read_optional(folder / GENERATION_NAME, GenerationConfig) or GenerationConfig()
    named = backend.token_to_id(eos) if eos is not None else None
    found = {
        SETTINGS_NAME: _ids(named),
        CONFIG_NAME: _ids(config.eos_token_id),
        GENERATION_NAME: _ids(generation.eos_token_id),
    }
    ends = _usable_ends(folder, found, config.vocab_size)
    settings = TokenizerSettings(bos_token=bos, eos_token=eos, eos_token_ids=tuple(sorted(ends)))
    tokenizer = Tokenizer(backend, settings, _find_template(folder, texts))
    tokenizer.check_fits(config.vocab_size, folder)
    return tokenizer


def _usable_ends(folder: Path, found: Mapping[str, set[int]], vocab_size: int) -> set[int]:
    """The end tokens that the model can give, of those that its files name; the others are left out with a warning.

    Raises: ConfigError where none is left: answers would never end.
    """
    named = set().union(*found.values())
    usable = {id for id in named if 0 <= id < vocab_size}
    for file, ids in found.items():
        wrong = ", ".join(map(str, sorted(ids - usable)))
        if wrong and not usable and file != SETTINGS_NAME:  # there it is the tokenizer that does not fit
            raise ConfigError(
                f"{folder / file}: eos_token_id {wrong} is outside the vocabulary of {vocab_size}, and no other token "
                "is named that ends an answer: set it to that token's id"
            )
        if wrong:
            logger.warning("end tokens ignored file=%s ids=%s vocab_size=%d", folder / file, wrong, vocab_size)
    return usable


def _find_template(folder: Path, texts: TokenizerConfig) -> str | None:
    """The chat template, from the newest of the three places that have been used for it."""
    if (folder / TEMPLATE_NAME).exists():
        return read_text(folder / TEMPLATE_NAME)
    if (found := _read_optional(folder / JSON_TEMPLATE_NAME, JsonTemplate)) is not None:
        return found.chat_template
    if isinstance(texts.chat_template, list):
        return next((entry.template for entry in texts.chat_template if entry.name == "default"), None)
    return texts.chat_template


def _read_optional(file: Path, kind: type[T]) -> T | None:
    return read_json(file, kind) if file.exists() else None


def _token_text(token: TokenText) -> str | None:
    """A token is written as its text or as an object around it."""
    return token.get("content") if isinstance(token, dict) else token


def _ids(value: int | tuple[int, ...] | None) -> set[int]:
    return {value} if isinstance(value, int) else set(value or ())
