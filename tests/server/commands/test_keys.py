"""`fenhe keys hash`: it hashes what a header carries; a key that could be guessed brings a warning, not a refusal."""

import hashlib
import io

import pytest

from server.commands.cli import main


@pytest.mark.parametrize(("num_chars", "is_warned"), [(31, True), (32, False)])
def test_short_key_is_warned_of(
    num_chars: int, is_warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "k" * num_chars
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n"))
    assert main(["keys", "hash", "web"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("[[key]]")
    assert ("warning" in told.err) is is_warned
    assert key not in told.out + told.err


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("fk-à\n".encode(), "fk-à".encode()),
        (b" fk-a\t\r\n", b"fk-a"),
        ("fk-a\u3000\n".encode(), "fk-a\u3000".encode()),
        ("fk-a\xa0\n".encode(), "fk-a\xa0".encode()),
    ],
)
def test_key_is_hashed_as_a_header_carries_it(
    line: bytes, key: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line), encoding="utf-8"))
    assert main(["keys", "hash", "web"]) == 0
    assert hashlib.sha256(key).hexdigest() in capsys.readouterr().out


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_key_that_is_no_utf8_is_an_error_or_hashed_as_its_bytes(
    errors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python reads stdin strictly, or in a C locale with `surrogateescape`; neither may end in a traceback."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"fk-\xe0\n"), encoding="utf-8", errors=errors))
    is_strict = errors == "strict"
    assert main(["keys", "hash", "web"]) == (2 if is_strict else 0)
    said = capsys.readouterr()
    assert ("not UTF-8" in said.err) is is_strict
    assert (hashlib.sha256(b"fk-\xe0").hexdigest() in said.out) is not is_strict
