"""Calls are found in a text however it is cut, and nothing of it is lost or shown twice."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import GrammarFailed
from server.generation.tool_calls import CallPiece, CallReader, Piece, delta_of

ARGUMENTS = ['{"city": "Xi\'an", "n": [1, {"a": "}"}]}', "{}", '{"x": "\\n</tool_call>"}']
NAMES = ["get_weather", "f-2", "github.issues/create:v2", "n" * 128]


def text_of(*calls: tuple[str, str]) -> str:
    written = (
        f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>' for name, arguments in calls
    )
    return "\n".join(written)


def read(pieces_of_text: list[str]) -> tuple[str, list[tuple[str, str]], CallReader]:
    """The text beside the calls, and the calls as a client puts them together from the pieces."""
    reader = CallReader()
    pieces: list[Piece] = [piece for text in pieces_of_text for piece in reader.push(text)] + reader.finish()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        if isinstance(piece, CallPiece):
            if piece.opens is not None:
                assert piece.index not in names
                assert piece.arguments == ""
                names[piece.index] = piece.opens.name
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return text, [(names[index], arguments[index]) for index in sorted(names)], reader


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


@given(
    calls=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(ARGUMENTS)), max_size=3),
    before=st.sampled_from(["", "Let me look. ", "1 < 2 <tool", "a\n\n"]),
    places=st.lists(st.integers(0, 300), max_size=30),
)
def test_calls_are_read_however_the_text_is_cut(calls: list[tuple[str, str]], before: str, places: list[int]) -> None:
    text, found, reader = read(cut(before + text_of(*calls), places))
    assert text == (before.rstrip() if calls else before)
    assert found == calls
    assert reader.has_whole_calls == bool(calls)
    assert [(call.name, call.arguments) for call in reader.calls] == calls
    assert len({call.id for call in reader.calls}) == len(calls)
    assert all(json.loads(call.arguments) is not None for call in reader.calls)


@given(length=st.integers(0, 120))
def test_a_text_cut_off_has_no_whole_calls(length: int) -> None:
    whole = text_of((NAMES[0], ARGUMENTS[0]))
    text, found, reader = read([whole[:length]] if length < len(whole) else [whole[:-1]])
    assert not reader.has_whole_calls
    assert [ARGUMENTS[0].startswith(arguments) for _, arguments in found] in ([], [True])
    assert text == "" or "<tool_call>".startswith(text)


@pytest.mark.parametrize("levels", [600, 990, 1500, 100_000])
@pytest.mark.parametrize("end", ["", "}", "}\n</tool_call"])
def test_arguments_nested_deeply_may_be_cut_off(levels: int, end: str) -> None:
    arguments = '{"x": ' + "[" * levels + "]" * levels + "}"
    text = text_of((NAMES[0], arguments)).removesuffix("}\n</tool_call>") + end
    _, found, reader = read([text])
    assert not reader.has_whole_calls
    assert found[0][1].startswith(arguments)


def test_text_comes_as_soon_as_it_is_sure() -> None:
    reader = CallReader()
    assert reader.push("I see") == ["I see"]
    assert reader.push(" <to") == []
    assert reader.push("day") == [" <today"]


def test_arguments_come_as_they_are_written() -> None:
    reader = CallReader()
    opened = reader.push('<tool_call>\n{"name": "find", "arguments": {"q": ')
    assert [type(piece) for piece in opened] == [CallPiece, CallPiece]
    assert reader.push('"long te') == [CallPiece(index=0, arguments='"long te')]


def test_what_begins_like_a_call_and_is_none_is_an_error() -> None:
    with pytest.raises(GrammarFailed):
        CallReader().push(
            "<tool_call> and then he said something that is no call at all, for quite a while" + " on" * 60
        )


def test_deltas_have_id_type_and_name_once() -> None:
    reader = CallReader()
    first, second = (delta_of(piece).tool_calls for piece in reader.push('<tool_call>\n{"name": "f", "arguments": {"a'))
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert (first[0].id, first[0].type, first[0].function.name, first[0].function.arguments) == (
        reader.calls[0].id,
        "function",
        "f",
        "",
    )
    assert reader.calls[0].id.startswith("call_")
    assert second[0].function.arguments == '{"a'
    assert not isinstance(second[0].id, str)
