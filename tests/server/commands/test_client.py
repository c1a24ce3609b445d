"""How commands reach a server: the API key, and what a refusal means."""

import pytest

from models.errors import ConfigError, Unauthorized
from server.commands.client import find_api_key, headers, read_refusal


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"error": "text"}', b"[]"])
def test_refusal_in_another_shape_is_told(body: bytes) -> None:
    assert "is the URL right" in read_refusal(502, body).message


def test_key_of_the_option_wins_and_empty_ones_do_not_count() -> None:
    environ = {"FENHE_API_KEY": " ", "OPENAI_API_KEY": "there\n"}
    assert find_api_key("here", environ) == "here"
    assert find_api_key(None, environ) == "there"
    assert find_api_key("", {}) is None


@pytest.mark.parametrize("key", ["fk-a\r\nx: y", "fk-a\x7f", "fk-\x85x", "fk-\udcff"])
def test_key_that_no_header_carries_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_api_key(key, {})
    assert "fk-" not in caught.value.message


def test_refusal_for_want_of_a_key_is_told_apart() -> None:
    body = b'{"error": {"message": "no key"}}'
    assert isinstance(read_refusal(401, body), Unauthorized)
    assert read_refusal(400, body).message == "no key"


@pytest.mark.parametrize("key", ["fk-à", "fk-漢字"])
def test_key_beyond_ascii_is_sent_in_utf8(key: str) -> None:
    found = find_api_key(key, {})
    assert headers(found)["authorization"].encode("latin-1") == f"Bearer {key}".encode()
