"""What the documents say of the code is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
_FILE = re.compile(r"`((?:server|bench|router|engines|models|loadtest|tests)/[\w/.-]+\.\w+)`")
_FOLDER = re.compile(r"`((?:server|bench|router|engines|models|loadtest|tests)/[\w/]+/)`")
_ANCHOR = re.compile(r"\]\((?!http)([^)#]*)#([^)]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_documents_name_files_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = [*_FILE.findall(text), *_FOLDER.findall(text)]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_documents_link_to_what_exists(document: Path) -> None:
    targets = _LINK.findall(document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_documents_link_to_headings_that_exist(document: Path) -> None:
    dead = []
    for target, heading in _ANCHOR.findall(_prose(document)):
        file = document.parent / target if target else document
        if file.suffix == ".md" and heading not in {_anchor_of(line) for line in _HEADING.findall(_prose(file))}:
            dead.append(f"{target}#{heading}")
    assert dead == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_documented_curl_sends_json_as_json(document: Path) -> None:
    """The server refuses bodies with curl's own content-type."""
    sent = [line for line in document.read_text(encoding="utf-8").splitlines() if "curl " in line and " -d " in line]
    assert [line for line in sent if "content-type: application/json" not in line] == []


def _prose(document: Path) -> str:
    """Its text without blocks of code, where a comment would look like a heading."""
    return re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def _anchor_of(heading: str) -> str:
    """As GitHub makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def test_architecture_names_files_of_every_storey() -> None:
    named = _FILE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert {name.split("/")[0] for name in named} >= {"server", "router", "engines", "models"}
