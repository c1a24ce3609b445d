"""The depth of a JSON text, known before it is decoded."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadRequest
from server.wire.json_depth import check_depth, json_depth


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(one) for one in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(one) for one in value), default=0)
    return 0


texts = st.text(st.sampled_from('[]{}"\\ab\n'))
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(values, st.booleans())
def test_depth_is_that_of_the_decoded_value(value: Any, is_ascii: bool) -> None:
    assert json_depth(json.dumps(value, ensure_ascii=is_ascii).encode()) == depth_of(value)


def test_brackets_in_strings_do_not_count() -> None:
    check_depth(json.dumps({"content": '[{"' * 1000}).encode(), 2)


def test_wide_is_not_deep() -> None:
    check_depth(b"[" + b"[]," * 10_000 + b"[]]", 2)


@pytest.mark.parametrize("body", [b"[" * 65, b'{"a":' * 65, b'["' + b'\\"' * 1000 + b'",' + b"[" * 64, b"[" * 10**6])
def test_too_deep_is_refused_with_the_setting(body: bytes) -> None:
    with pytest.raises(BadRequest, match="max_json_depth"):
        check_depth(body, 64)


def test_strings_without_an_end_take_no_longer() -> None:
    """Quadratic in the number of quotes, this would take an hour."""
    body = b'"' + b'\\"[' * 700_000
    assert json_depth(body) == 0
