"""Files that are made by program and kept in the repository, so that a change of them is seen in the diff."""

import os
from pathlib import Path

SWITCH = "REWRITE"
"""With this variable set, the tests write the files anew instead of comparing them."""


def assert_up_to_date(file: Path, text: str) -> None:
    if SWITCH in os.environ:
        file.write_text(text, encoding="utf-8")
    kept = file.read_text(encoding="utf-8") if file.exists() else ""
    assert kept == text, f"{file.name} is not what the code says; if the change is meant: {SWITCH}=1 pytest ..."
