"""`fenhe keys hash`: a key that could be guessed brings a warning, not a refusal."""

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
