"""The depth and the size of a JSON text, known before it is decoded."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadRequest
from server.wire.json_shape import PIECE_BYTES, check_shape, json_shape


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(one) for one in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(one) for one in value), default=0)
    return 0


def num_nodes_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict | list) + sum(map(num_nodes_of, inner))


texts = st.text(st.sampled_from('[]{}"\\ab\n'))
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(values, st.booleans())
def test_shape_is_that_of_the_decoded_value(value: Any, is_ascii: bool) -> None:
    shape = json_shape(json.dumps(value, ensure_ascii=is_ascii).encode())
    assert shape == (depth_of(value), num_nodes_of(value))


@given(st.lists(values, max_size=8), st.integers(0, 40))
def test_shape_of_a_long_text_is_the_same_wherever_it_is_cut(several: list[Any], shift: int) -> None:
    value = ["x" * (PIECE_BYTES - shift), *several, '\\"[' * PIECE_BYTES, *several]
    assert json_shape(json.dumps(value).encode()) == (depth_of(value), num_nodes_of(value))


def test_brackets_in_strings_do_not_count() -> None:
    check_shape(json.dumps({"content": '[{"' * 1000}).encode(), max_depth=2, max_nodes=1)


def test_wide_is_not_deep() -> None:
    check_shape(b"[" + b"[]," * 10_000 + b"[]]", max_depth=2, max_nodes=10_002)


@pytest.mark.parametrize("body", [b"[" * 65, b'{"a":' * 65, b'["' + b'\\"' * 1000 + b'",' + b"[" * 64, b"[" * 10**6])
def test_too_deep_is_refused_with_the_setting(body: bytes) -> None:
    with pytest.raises(BadRequest, match="max_json_depth"):
        check_shape(body, max_depth=64, max_nodes=10**7)


@pytest.mark.parametrize("body", [b"[" + b"[]," * 100 + b"[]]", b"[" + b'{"[":"]"},' * 100 + b"[]]"])
def test_too_many_nodes_are_refused_with_the_setting(body: bytes) -> None:
    with pytest.raises(BadRequest, match=r"102 arrays and objects, more than 101 \(limits.max_json_nodes\)"):
        check_shape(body, max_depth=64, max_nodes=101)
    check_shape(body, max_depth=64, max_nodes=102)


def test_strings_without_an_end_take_no_longer() -> None:
    """Quadratic in the number of quotes, this would take an hour."""
    body = b'"' + b'\\"[' * 700_000
    assert json_shape(body) == (0, 0)
