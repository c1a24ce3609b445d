"""Where a decoder is cut: module layouts, and the exits and paths that follow from them."""

from collections.abc import Iterable

from models.errors import ConfigError
from models.student.manifest import DepthRule, Exit, Layout, Module, StudentPath

TASKS = ("math", "legal", "fact", "creative", "general")
DEFAULT_SHARES = (("knowledge", 0.3), ("reasoning", 0.5), ("adapter", 0.2))
FULL_PATH = "full"


def default_modules(num_layers: int) -> tuple[Module, ...]:
    """Knowledge 30 %, reasoning 50 %, adapter 20 % of the layers; a model of fewer than three layers is one module."""
    if num_layers < len(DEFAULT_SHARES):
        return (Module(name=DEFAULT_SHARES[0][0], first_layer=0, num_layers=num_layers),)
    first = max(1, round(num_layers * DEFAULT_SHARES[0][1]))
    last = max(1, round(num_layers * DEFAULT_SHARES[2][1]))
    counts = (first, num_layers - first - last, last)
    return stacked([(name, count) for (name, _), count in zip(DEFAULT_SHARES, counts, strict=True)])


def parse_modules(text: str, num_layers: int) -> tuple[Module, ...]:
    """Read `knowledge:9,reasoning:15,adapter:6`.

    Raises: ConfigError when it cannot be read or does not cover the model's layers.
    """
    counts = []
    for item in text.split(","):
        name, _, count = item.strip().partition(":")
        if not name.isidentifier() or not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"--modules: {item.strip()!r} is not NAME:LAYERS (such as knowledge:9)")
        counts.append((name, int(count)))
    names = [name for name, _ in counts]
    taken = {FULL_PATH, "head", *(f"{name}_exit" for name in names)}
    if len(set(names)) < len(names) or taken & set(names):
        raise ConfigError(
            f"--modules: names must differ, and `full`, `head` and exits' names are taken: {', '.join(names)}"
        )
    total = sum(count for _, count in counts)
    if total != num_layers:
        raise ConfigError(f"--modules: {text} has {total} layers, the model has {num_layers}")
    return stacked(counts)


def plain_layout(modules: tuple[Module, ...]) -> Layout:
    """The layout without trained exits: untrained ones produce noise, so every task and length takes the full path."""
    return Layout(
        modules=modules,
        exits=exits_of(modules),
        paths=paths_of(modules),
        tasks=dict.fromkeys(TASKS, FULL_PATH),
        depth_rules=(DepthRule(max_prompt_tokens=None, path=FULL_PATH),),
    )


def own_end(modules: tuple[Module, ...]) -> Exit:
    """The model's own final norm and head as an exit; it needs no training."""
    return Exit(name=f"{modules[-1].name}_exit", after=modules[-1].name, is_trained=True)


def full_path(modules: tuple[Module, ...]) -> StudentPath:
    return StudentPath(name=FULL_PATH, modules=tuple(module.name for module in modules), exit=own_end(modules).name)


def exits_of(modules: tuple[Module, ...]) -> tuple[Exit, ...]:
    """One untrained exit behind every module; the last is the model's own end."""
    untrained = (Exit(name=f"{module.name}_exit", after=module.name) for module in modules[:-1])
    return (*untrained, own_end(modules))


def paths_of(modules: tuple[Module, ...]) -> tuple[StudentPath, ...]:
    """Every prefix of the modules, named by its deepest one; the longest is `full`."""
    names = [module.name for module in modules]
    shorter = (
        StudentPath(name=name, modules=tuple(names[: depth + 1]), exit=f"{name}_exit")
        for depth, name in enumerate(names[:-1])
    )
    return (*shorter, full_path(modules))


def stacked(counts: Iterable[tuple[str, int]]) -> tuple[Module, ...]:
    """Modules of these names and numbers of layers, one after the other."""
    modules = []
    first_layer = 0
    for name, count in counts:
        modules.append(Module(name=name, first_layer=first_layer, num_layers=count))
        first_layer += count
    return tuple(modules)
