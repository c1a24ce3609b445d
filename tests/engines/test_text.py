"""Streams show whole characters and never a part of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.text import TextStream


def feed(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """Push pieces until a stop string matches, then finish."""
    stream = TextStream(pieces.__getitem__, stop)
    shown = []
    for index in range(len(pieces)):
        shown.append(stream.push(index))
        if stream.matched is not None:
            break
    return [*shown, stream.finish()], stream


def test_text_holds_back_a_cut_character() -> None:
    euro = "€".encode()
    shown, _ = feed([b"a" + euro[:1], euro[1:2], euro[2:] + b"b"])
    assert shown == ["a", "", "€b", ""]


@pytest.mark.parametrize("stop", [(), ("b",), ("€",), ("ab",)])
@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_text_leaves_a_character_out_that_never_completes(num_bytes: int, stop: tuple[str, ...]) -> None:
    shown, stream = feed([b"a", "😀".encode()[:num_bytes]], stop)
    assert "".join(shown) == "a"
    assert stream.matched is None


def test_text_replaces_bytes_that_are_no_character() -> None:
    """What follows shows that they are none, so they are not held back."""
    shown, _ = feed(["€".encode()[:2], b"a", b"\xff"])
    assert "".join(shown) == "\ufffda\ufffd"


@given(st.text(), st.data())
def test_text_cut_anywhere_is_the_same_text(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    shown, _ = feed(pieces)
    assert "".join(shown) == raw.decode()


def test_text_cuts_a_stop_string_across_tokens() -> None:
    shown, stream = feed([b"one E", b"N", b"D two"], ("END",))
    assert "".join(shown) == "one "
    assert stream.matched == "END"
    assert shown[0] == "one "


def test_text_releases_what_only_looked_like_a_stop_string() -> None:
    shown, stream = feed([b"EN", b"EN", b"x"], ("END",))
    assert "".join(shown) == "ENENx"
    assert stream.matched is None


def test_text_prefers_the_earliest_then_the_longest_stop_string() -> None:
    shown, stream = feed([b"ab cd"], ("cd", "b", "b c"))
    assert "".join(shown) == "a"
    assert stream.matched == "b c"


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1))
def test_text_never_shows_any_of_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    shown, stream = feed([piece.encode() for piece in pieces], tuple(stops))
    whole, text = "".join(pieces), "".join(shown)
    assert all(stop not in text for stop in stops)
    if stream.matched is None:
        assert text == whole
    else:
        assert whole.startswith(text + stream.matched)


@pytest.mark.parametrize("stop", ["。", "\n\n", "😀"])
def test_text_matches_stop_strings_of_many_bytes(stop: str) -> None:
    raw = f"前{stop}后".encode()
    shown, stream = feed([raw[i : i + 1] for i in range(len(raw))], (stop,))
    assert "".join(shown) == "前"
    assert stream.matched == stop


def test_text_shows_the_stop_string_where_that_is_wanted() -> None:
    stream = TextStream([b"one E", b"ND two"].__getitem__, ("END",), shows_stop=True)
    assert [stream.push(0), stream.push(1), stream.finish()] == ["one ", "END", ""]
    assert stream.matched == "END"


def test_text_passes_by_stop_strings_while_it_may_not_stop() -> None:
    stream = TextStream([b"a END b", b" EN", b"D c"].__getitem__, ("END",))
    assert stream.push(0, may_stop=False) == "a END b"
    assert stream.push(1, may_stop=False) == " "
    assert stream.matched is None
    assert stream.push(2) == ""
    assert stream.matched == "END"


def held(text: str, stops: list[str]) -> int:
    """How many characters at the end of a text are a beginning of a stop string, by definition."""
    lengths = range(min(len(text), max(map(len, stops)) - 1), 0, -1)
    return next((n for n in lengths if any(n < len(stop) and stop.startswith(text[-n:]) for stop in stops)), 0)


@given(st.text("ab.(", max_size=12), st.lists(st.text("ab.(", min_size=1, max_size=5), min_size=1, max_size=32))
def test_text_holds_back_what_may_begin_a_stop_string_and_no_more(text: str, stops: list[str]) -> None:
    shown, stream = feed([text.encode()], tuple(stops))
    if stream.matched is None:
        assert shown == [text[: len(text) - held(text, stops)], text[len(text) - held(text, stops) :]]
