"""What the documents say of the code is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
_FILE = re.compile(r"`((?:server|bench|router|engines|models|loadtest|tests)/[\w/.-]+\.\w+)`")
_FOLDER = re.compile(r"`((?:server|bench|router|engines|models|loadtest|tests)/[\w/]+/)`")
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


def test_architecture_names_files_of_every_storey() -> None:
    named = _FILE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert {name.split("/")[0] for name in named} >= {"server", "router", "engines", "models"}
