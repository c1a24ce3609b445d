"""The structure of the code, read from its source: modules, what they import or name, rooms, circles, lengths.

`python -m tests.structure` prints the figures that docs/architecture.md has.
"""

import ast
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]

STOREYS = ("server", "bench", "router", "engines", "models")
"""From the top: a storey may import those below it."""

_NAME = re.compile(rf"(?<![\w./-])(?:{'|'.join((*STOREYS, 'loadtest', 'tests'))})(?:\.[a-z_][a-z0-9_]*)+")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def modules() -> Mapping[str, Path]:
    """Every module of ours by its full name."""
    files = [file for folder in (*STOREYS, "loadtest") for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    return {module_name(file): file for file in files}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it: `from a import b` is `a.b`."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide their storey"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def named(file: Path) -> Iterator[str]:
    """What the texts of a file name as modules of ours. Prose (a text that stands alone) is left out."""
    prose = {id(node.value) for node in ast.walk(tree_of(file)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from _NAME.findall(node.value)


def module_of(name: str, known: Set[str]) -> str | None:
    """The module that a dotted name begins with; None for a name that is not one of ours."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name if "." in name else None


def modules_named(file: Path) -> list[str]:
    """Modules of ours that the texts of a file name."""
    found = (module_of(name, modules().keys()) for name in named(file))
    return [module for module in found if module is not None]


@cache
def uses() -> Mapping[str, frozenset[str]]:
    """For every module those of ours that it imports or names."""
    known = modules().keys()
    found = {}
    for name, file in modules().items():
        others = {module_of(other, known) for other in imported(file)} | {*modules_named(file)}
        found[name] = frozenset(other for other in others if other is not None and other != name)
    return found


def room_of(module: str, storey: str) -> str | None:
    """The room of a storey that a module stands in; None outside of the storey."""
    return module.removeprefix(f"{storey}.").split(".")[0] if module.startswith(f"{storey}.") else None


def circles(graph: Mapping[str, Set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other: what is left when modules that nothing leads into, or that lead
    nowhere, are taken away again and again, belongs to circles or lies between them."""
    left = {name: set(others) & graph.keys() for name, others in graph.items()}
    while True:
        targets = set().union(*left.values()) if left else set()
        ends = {name for name, others in left.items() if not others or name not in targets}
        if not ends:
            return [sorted(left)] if left else []
        left = {name: others - ends for name, others in left.items() if name not in ends}


def file_circles() -> list[list[str]]:
    """Circles between files; what a package's `__init__` says of itself is left out."""
    packages = {name for name, file in modules().items() if file.name == "__init__.py"}
    return circles({name: set(others) - packages for name, others in uses().items() if name not in packages})


def arrows(storey: str) -> set[tuple[str, str]]:
    """Which room of a storey uses which other one."""
    pairs = ((room_of(module, storey), room_of(other, storey)) for module, others in uses().items() for other in others)
    return {(room, other) for room, other in pairs if room is not None and other not in (None, room)}


def function_lengths() -> list[int]:
    """Lines of every function and method, from `def` to its end."""
    return sorted(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for file in modules().values()
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def main() -> None:
    for storey in (*STOREYS, "models.distill", "loadtest"):
        rooms = Counter(room_of(module, storey) for module, file in modules().items() if file.name != "__init__.py")
        sizes = ", ".join(f"{room} {number}" for room, number in sorted(rooms.items(), key=str) if room and number > 1)
        num_rooms = len({room for room in rooms if room})
        print(f"{storey}: {num_rooms} rooms, {len(arrows(storey))} arrows; files per room: {sizes or 'one each'}")
    lengths = function_lengths()
    p50, p90, p99 = (statistics.quantiles(lengths, n=100)[share - 1] for share in (50, 90, 99))
    print(f"functions: {len(lengths)}; lines p50 {p50:.0f}, p90 {p90:.0f}, p99 {p99:.0f}, longest {lengths[-1]}")
    print(f"circles between files: {len(file_circles())}")


if __name__ == "__main__":
    main()
