"""`python -m tests.affected`: run the tests that changed files touch, nearest first, and say what was left out.

Changed is what differs from the merge base with main, committed or not. A test file is touched when it changed, or
what it imports at whatever distance, or a conftest.py above it. It shows mistakes early and replaces no `make test`.
"""

import argparse
import ast
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILES = 25
MAX_SECONDS = 25.0
ALWAYS = ("tests/test_imports.py",)
"""It reads every file."""

Sources = Mapping[str, str]
"""The text of every Python file of ours, by its path from the root."""


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def changed_files() -> set[str]:
    """What differs from the merge base with main (from the last commit, where there is no main), deleted files too."""
    base = next((found[0] for name in ("origin/main", "main") if (found := git("merge-base", "HEAD", name))), "HEAD")
    untracked = git("ls-files", "--others", "--exclude-standard")
    return {*git("diff", "--name-only", "--no-renames", base), *untracked}


def read_sources() -> dict[str, str]:
    files = git("ls-files", "--cached", "--others", "--exclude-standard", "*.py")
    return {file: (ROOT / file).read_text(encoding="utf-8") for file in files if (ROOT / file).is_file()}


def imported_files(source: str) -> Iterator[str]:
    """Where the modules a file imports would lie, and the packages around them."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = PurePosixPath(*name.split("."))
            yield f"{path}.py"
            yield from (f"{package}/__init__.py" for package in (path, *path.parents[:-1]))


def stand_ins(file: str, sources: Sources) -> set[str]:
    """Python files to take as changed for one that is none: those that name it, and the package it lies in."""
    path = PurePosixPath(file)
    package = next((folder for folder in path.parents if f"{folder}/__init__.py" in sources), None)
    beside = {one for one in sources if package is not None and PurePosixPath(one).parent == package}
    name = path.name if path.suffix else file
    return beside | {one for one, source in sources.items() if name in source}


def distances_from(changed: Iterable[str], sources: Sources) -> dict[str, int]:
    """How many imports every file is away from what changed."""
    distances = dict.fromkeys(changed, 0)
    for file in [one for one in distances if not one.endswith(".py")]:
        distances = dict.fromkeys(stand_ins(file, sources), 1) | distances
    importers: dict[str, set[str]] = {}
    for file, source in sources.items():
        for needed in imported_files(source):
            importers.setdefault(needed, set()).add(file)
    waiting = sorted(distances, key=distances.__getitem__)
    for file in waiting:
        for importer in sorted(importers.get(file, set()) - distances.keys()):
            distances[importer] = distances[file] + 1
            waiting.append(importer)
    return distances


def touched_tests(changed: Iterable[str], sources: Sources) -> list[str]:
    """Test files, nearest first: changed ones, pages of changed files, importers, those below a touched conftest.py."""
    distances = distances_from(changed, sources)
    pages = {str(_page(PurePosixPath(file))) for file in changed}
    shared = {PurePosixPath(file).parent for file in distances if PurePosixPath(file).name == "conftest.py"}
    tests = [file for file in sources if file.startswith("tests/") and PurePosixPath(file).name.startswith("test_")]
    far = len(sources)
    places = {file: distances[file] for file in tests if file in distances}
    below = [file for file in tests if shared.intersection(PurePosixPath(file).parents)]
    for file in (*below, *pages, *ALWAYS):
        if changed and file in sources:
            places.setdefault(file, far)
    return sorted(places, key=lambda file: (places[file] > 0, file not in pages, places[file], file))


def _page(file: PurePosixPath) -> PurePosixPath:
    return "tests" / file.parent / f"test_{file.stem.lower()}.py"


class TimeLimit:
    """A pytest plugin that begins no test a while after the first one, and says which files they were of."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end_s: float | None = None
        self._left_out: Counter[str] = Counter()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if self._end_s is None:  # however long the start took: the nearest tests are run
            self._end_s = time.monotonic() + self._seconds
            return None
        if time.monotonic() < self._end_s:
            return None
        self._left_out[item.nodeid.split("::", maxsplit=1)[0]] += 1
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for file, number in self._left_out.items():
            terminalreporter.line(f"left out for want of time: {number} tests of {file}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.affected", description=__doc__)
    parser.add_argument("--files", type=int, default=MAX_FILES, help="test files at most (default %(default)s)")
    late = "begin no test later than this after the first (default %(default)s)"
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS, help=late)
    parser.add_argument("--list", action="store_true", help="only name all test files")
    options = parser.parse_args(argv)
    changed = changed_files()
    tests = touched_tests(changed, read_sources())
    chosen, rest = tests[: options.files], tests[options.files :]
    print(f"{len(changed)} files changed, {len(tests)} test files touched:", *chosen, sep="\n  ", flush=True)
    if rest:
        folders = Counter("/".join(file.split("/")[:-1]) for file in rest)
        told = rest if options.list else [f"{number} of {folder}" for folder, number in folders.items()]
        print(f"left out, beyond {options.files} files:", *told, sep="\n  ", flush=True)
    if options.list or not chosen:
        return 0
    return int(pytest.main(chosen, plugins=[TimeLimit(options.seconds)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
