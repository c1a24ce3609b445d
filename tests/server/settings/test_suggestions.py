"""Wrong settings: said in words, with what may stand there and what was meant."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
from msgspec import Meta

from models.errors import ConfigError
from server.access.keys import KeyEntry
from server.settings.config import ServerConfig, StudentConfig
from server.settings.reading import load_config
from server.settings.suggestions import PATTERNS, find_setting


def patterns(hint: Any) -> Iterator[str]:
    """Every pattern in a type and in the types it is made of."""
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Meta) and note.pattern is not None:
            yield note.pattern
    for inner in get_args(hint):
        yield from patterns(inner)
    if hasattr(hint, "__annotations__"):
        for part in get_type_hints(hint, include_extras=True).values():
            yield from patterns(part)


def test_every_pattern_has_words() -> None:
    found = {pattern for kind in (ServerConfig, StudentConfig, KeyEntry) for pattern in patterns(kind)}
    assert len(found) > 3
    assert found <= set(PATTERNS)


def message(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config({}, environ)
    return caught.value.message


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"FENHE_ADMIN__KEY_SHA256": "x"}, "(not shown): must be a SHA-256 in hexadecimal (64 characters)"),
        ({"FENHE_CORS__ORIGINS": "https://a.b,c"}, "must be an origin such as https://page.example"),
        ({"FENHE_CACHE__NAMESPACE": "a b"}, "'a b': must be 1 to 64 letters"),
        ({"FENHE_LOG_FORMAT": "xml"}, "'xml': must be one of text, json"),
        ({"FENHE_ROUTER__MIN_RETENTION__MATHS": "1"}, "must be one of math, legal, fact, creative, general"),
    ],
)
def test_wrong_value_is_told_without_a_pattern(environ: dict[str, str], said: str) -> None:
    told = message(environ)
    assert said in told
    assert "regex" not in told
    assert "enum" not in told


def test_second_of_a_list_is_pointed_at() -> None:
    assert message({"FENHE_CORS__ORIGINS": "https://a.b,c"}).endswith("at `$[1]`")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("FENHE_PROT", "FENHE_PORT"),
        ("FENHE_MAX_RUNNING", "FENHE_ENGINE__MAX_RUNNING"),
        ("FENHE_ENGINE_MAX_RUNNING", "FENHE_ENGINE__MAX_RUNNING"),
        ("FENHE_ROUTER__MIN_RETENTON", "FENHE_ROUTER__MIN_RETENTION"),
    ],
)
def test_variable_that_was_meant_is_named(variable: str, meant: str) -> None:
    assert message({variable: "1"}) == f"{variable}: no such setting; did you mean {meant}?"


def test_variable_like_no_other_is_only_refused() -> None:
    assert message({"FENHE_COLOUR_OF_THE_SKY": "1"}) == "FENHE_COLOUR_OF_THE_SKY: no such setting"


def test_setting_of_several_sections_is_not_guessed() -> None:
    assert find_setting("nowhere_at_all.enabled", ["cache.enabled", "router.enabled"]) is None
