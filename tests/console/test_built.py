"""The built page as it is committed: small, from this server alone, in two whole languages. Needs no browser."""

import gzip
import json
import re
from pathlib import Path

from server.api.console_page import BUILT

CONSOLE = BUILT.parent
TEXT = CONSOLE / "src" / "text"
MOST_BYTES = 250_000
_SPOKEN = re.compile(r"`[^`]*`|'(?:[^'\\]|\\.)*'|\([^()]*\)(?= =>)")
"""Texts, and the parameters of functions that make some."""
_KEY = re.compile(r"(?:[{,]|^)\s*(\w+):", re.MULTILINE)


def test_page_is_small() -> None:
    """Zipped, as it is sent; with what is only fetched for formulas."""
    sizes = {file.name: len(gzip.compress(file.read_bytes())) for file in BUILT.rglob("*") if file.is_file()}
    first = sum(size for name, size in sizes.items() if not name.startswith("math"))
    print(f"the console: {first / 1000:.0f} kB zipped, {sum(sizes.values()) / 1000:.0f} kB with formulas")
    assert sum(sizes.values()) < MOST_BYTES


def test_page_names_no_other_host() -> None:
    """But for names of XML, and addresses in messages of the libraries."""
    for file in BUILT.rglob("*.*"):
        if file.suffix in {".js", ".css", ".html", ".svg"}:
            named = set(re.findall(r"https?://([\w.-]+)", file.read_text()))
            assert named <= {"www.w3.org", "github.com", "marked.js.org", "example.com"}, file.name


def test_both_languages_have_the_same_texts() -> None:
    english, chinese = (_keys(TEXT / f"{name}.ts") for name in ("en", "zh"))
    assert len(english) > 200
    assert english == chinese


def _keys(file: Path) -> list[str]:
    """In order."""
    return _KEY.findall(_SPOKEN.sub("", file.read_text()))


def test_lock_file_pins_by_content_and_names_no_host() -> None:
    packages = json.loads((CONSOLE / "package-lock.json").read_text())["packages"]
    pinned = [one for name, one in packages.items() if name and not one.get("link")]
    assert pinned
    assert all("integrity" in one and "resolved" not in one for one in pinned)
