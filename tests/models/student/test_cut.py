"""Where models are cut, and which exits and paths follow."""

import pytest

from models.errors import ConfigError
from models.student.cut import FULL_PATH, default_modules, exits_of, parse_modules, paths_of


@pytest.mark.parametrize(
    ("num_layers", "counts"),
    [(30, (9, 15, 6)), (10, (3, 5, 2)), (4, (1, 2, 1)), (3, (1, 1, 1)), (2, (2,)), (1, (1,))],
)
def test_default_modules_cover_every_layer_once(num_layers: int, counts: tuple[int, ...]) -> None:
    modules = default_modules(num_layers)
    assert tuple(module.num_layers for module in modules) == counts
    assert [module.name for module in modules] == ["knowledge", "reasoning", "adapter"][: len(counts)]
    layers = [
        layer for module in modules for layer in range(module.first_layer, module.first_layer + module.num_layers)
    ]
    assert layers == list(range(num_layers))


@pytest.mark.parametrize("num_layers", range(3, 100))
def test_default_modules_are_sound_for_any_depth(num_layers: int) -> None:
    counts = [module.num_layers for module in default_modules(num_layers)]
    assert sum(counts) == num_layers
    assert min(counts) >= 1


def test_parse_modules_reads_names_and_layers() -> None:
    modules = parse_modules("first:1, second:3", 4)
    assert [(module.name, module.first_layer, module.num_layers) for module in modules] == [
        ("first", 0, 1),
        ("second", 1, 3),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first:1,second", "'second' is not NAME:LAYERS"),
        ("first:1,second:0", "'second:0' is not"),
        ("first:1,second:-3", "is not NAME:LAYERS"),
        ("first:1,:3", "is not NAME:LAYERS"),
        ("a/b:4", "is not NAME:LAYERS"),
        ("", "is not NAME:LAYERS"),
        ("first:1,first:3", "names must differ"),
        ("full:4", "`full`, `head` and exits' names are taken"),
        ("head:1,tail:3", "`full`, `head` and exits' names are taken"),
        ("first:1,second:2", "has 3 layers, the model has 4"),
    ],
)
def test_parse_modules_refuses_what_does_not_fit(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_modules(text, 4)


def test_parse_modules_refuses_a_module_named_like_an_exit() -> None:
    with pytest.raises(ConfigError, match="first_exit"):
        parse_modules("first:1,first_exit:3", 4)


def test_paths_are_all_prefixes_and_the_longest_is_full() -> None:
    paths = paths_of(default_modules(10))
    assert [(path.name, path.modules, path.exit) for path in paths] == [
        ("knowledge", ("knowledge",), "knowledge_exit"),
        ("reasoning", ("knowledge", "reasoning"), "reasoning_exit"),
        (FULL_PATH, ("knowledge", "reasoning", "adapter"), "adapter_exit"),
    ]


def test_exits_follow_every_module_and_only_the_last_is_trained() -> None:
    exits = exits_of(default_modules(10))
    assert [(exit.name, exit.after, exit.is_trained) for exit in exits] == [
        ("knowledge_exit", "knowledge", False),
        ("reasoning_exit", "reasoning", False),
        ("adapter_exit", "adapter", True),
    ]
