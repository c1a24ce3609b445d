from xml.etree import ElementTree

import pytest

from models.distill.cutting.boundaries import LayerAnalysis
from models.distill.cutting.boundary_picture import boundary_svg
from models.errors import ConfigError
from models.student.manifest import Module

SVG = "{http://www.w3.org/2000/svg}"
ANALYSIS = LayerAnalysis(
    num_tokens=50,
    block_influence=(0.8, 0.2, 0.0, 0.4),
    angular_distance=(
        (0.0, 0.1, 0.2, 0.3, 0.4),
        (0.1, 0.0, 0.1, 0.2, 0.3),
        (0.2, 0.1, 0.0, 0.1, 0.2),
        (0.3, 0.2, 0.1, 0.0, 0.1),
        (0.4, 0.3, 0.2, 0.1, 0.0),
    ),
    attention_distance_tokens=(10.0, 40.0, 20.0, 0.0),
    attention_entropy_nats=(1.0, 1.0, 1.0, 1.0),
    sink_share=(0.5, 0.5, 0.5, 0.5),
    local_share=(0.2, 0.2, 0.2, 0.2),
    map_similarity=(0.9, 0.9, 0.9),
)
MODULES = (
    Module(name="knowledge", first_layer=0, num_layers=1),
    Module(name="reasoning", first_layer=1, num_layers=2),
    Module(name="adapter", first_layer=3, num_layers=1),
)

DEEP = LayerAnalysis(
    num_tokens=50,
    block_influence=(0.1,) * 80,
    angular_distance=((0.1,) * 81,) * 81,
    attention_distance_tokens=(10.0,) * 80,
    attention_entropy_nats=(1.0,) * 80,
    sink_share=(0.5,) * 80,
    local_share=(0.2,) * 80,
    map_similarity=(0.9,) * 79,
)
DEEP_MODULES = (Module(name="all", first_layer=0, num_layers=80),)


def drawn(modules: tuple[Module, ...] = MODULES, analysis: LayerAnalysis = ANALYSIS) -> ElementTree.Element:
    return ElementTree.fromstring(boundary_svg(analysis, modules))


def marks(root: ElementTree.Element, tag: str, kind: str) -> list[ElementTree.Element]:
    return [mark for mark in root.iter(f"{SVG}{tag}") if mark.get("class") == kind]


def numbers(items: list[ElementTree.Element], key: str) -> list[float]:
    return [float(item.attrib[key]) for item in items]


def frame(root: ElementTree.Element) -> tuple[float, float]:
    """Left edge and width of the charts: the box around the first."""
    box = next(mark for mark in root.iter(f"{SVG}rect") if mark.get("fill") == "none")
    return float(box.attrib["x"]), float(box.attrib["width"])


def test_picture_bars_are_as_high_as_the_influence_and_stand_on_one_line() -> None:
    bars = marks(drawn(), "rect", "influence")
    heights = numbers(bars, "height")
    assert [height / heights[0] for height in heights] == pytest.approx([1.0, 0.25, 0.0, 0.5], abs=1e-3)
    feet = [y + height for y, height in zip(numbers(bars, "y"), heights, strict=True)]
    assert feet == pytest.approx([feet[0]] * 4)


def test_picture_writes_the_influence_over_its_bar_where_there_is_room() -> None:
    root = drawn()
    figures = marks(root, "text", "figure")
    assert [figure.text for figure in figures] == [".80", ".20", ".00", ".40"]
    gaps = [bar - text for bar, text in zip(_tops(root), numbers(figures, "y"), strict=True)]
    assert all(0 < gap < 6 for gap in gaps)
    assert marks(drawn(DEEP_MODULES, DEEP), "text", "figure") == []
    assert len(marks(drawn(DEEP_MODULES, DEEP), "rect", "influence")) == 80


def _tops(root: ElementTree.Element) -> list[float]:
    return numbers(marks(root, "rect", "influence"), "y")


def test_picture_bars_and_points_stand_in_their_layers_columns() -> None:
    root = drawn()
    left, width = frame(root)
    centres = [left + width * part for part in (0.125, 0.375, 0.625, 0.875)]
    bars = marks(root, "rect", "influence")
    middles = [x + size / 2 for x, size in zip(numbers(bars, "x"), numbers(bars, "width"), strict=True)]
    assert middles == pytest.approx(centres, abs=0.01)
    assert numbers(marks(root, "circle", "distance"), "cx") == pytest.approx(centres, abs=0.01)


def test_picture_line_runs_through_the_attention_distances() -> None:
    root = drawn()
    points = marks(root, "circle", "distance")
    heights = numbers(points, "cy")
    low, high = heights[3], heights[1]
    assert low > high, "farther is higher up, and y grows downwards"
    assert [(low - y) / (low - high) for y in heights] == pytest.approx([0.25, 1.0, 0.5, 0.0], abs=1e-3)
    (line,) = marks(root, "polyline", "distance")
    corners = [tuple(map(float, corner.split(","))) for corner in line.attrib["points"].split()]
    assert corners == list(zip(numbers(points, "cx"), heights, strict=True))


def test_picture_heat_map_has_a_cell_per_pair_of_states() -> None:
    root = drawn()
    left, width = frame(root)
    (group,) = marks(root, "g", "angles")
    cells = list(group)
    assert len(cells) == 25
    assert numbers(cells, "fill-opacity")[:10] == pytest.approx(
        [0.0, 0.25, 0.5, 0.75, 1.0, 0.25, 0.0, 0.25, 0.5, 0.75], abs=0.01
    )
    third = cells[2]
    middle = float(third.attrib["x"]) + float(third.attrib["width"]) / 2
    assert middle == pytest.approx(left + width / 2, abs=0.1), "state 2 stands between layers 1 and 2"
    right = max(x + size for x, size in zip(numbers(cells, "x"), numbers(cells, "width"), strict=True))
    assert min(numbers(cells, "x")) == pytest.approx(left)
    assert right == pytest.approx(left + width)
    assert numbers(cells[::5], "y") == sorted(set(numbers(cells, "y")))


def test_picture_cuts_stand_between_the_modules_layers() -> None:
    root = drawn()
    left, width = frame(root)
    cuts = marks(root, "line", "cut")
    assert numbers(cuts, "x1") == numbers(cuts, "x2") == pytest.approx([left + width / 4, left + 3 * width / 4])
    bottom = max(y + height for group in marks(root, "g", "angles") for y, height in _spans(group))
    assert numbers(cuts, "y2") == pytest.approx([bottom, bottom]), "through all three charts"
    assert all(y < min(numbers(marks(root, "rect", "influence"), "y")) for y in numbers(cuts, "y1"))


def _spans(group: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(cell.attrib["y"]), float(cell.attrib["height"])) for cell in group]


def test_picture_names_every_module_over_its_layers_with_its_figures() -> None:
    root = drawn()
    left, width = frame(root)
    names = marks(root, "text", "module")
    assert [name.text for name in names] == ["knowledge", "reasoning", "adapter"]
    assert numbers(names, "x") == pytest.approx([left + width * part for part in (0.125, 0.5, 0.875)])
    written = [text.text for text in root.iter(f"{SVG}text")]
    assert {"2 layers", "influence 0.10", "reach 30 tokens"} <= set(written), "means of layers 1 and 2"


def test_picture_needs_nothing_outside_itself_and_follows_the_pages_colour() -> None:
    root = drawn()
    assert root.get("fill") == "currentColor"
    assert "system-ui" in (root.get("font-family") or "")
    text = boundary_svg(ANALYSIS, MODULES)
    assert "href" not in text
    assert "url(" not in text
    assert text.count("http") == 1, "the namespace"
    assert "svg:root" in text, "in a page the page's colours hold"


def test_picture_escapes_names() -> None:
    odd = (Module(name="a<b>&c", first_layer=0, num_layers=4),)
    assert [name.text for name in marks(drawn(odd), "text", "module")] == ["a<b>&c"]


def test_picture_of_layers_that_do_nothing_is_flat() -> None:
    fields = {name: getattr(ANALYSIS, name) for name in LayerAnalysis.__struct_fields__}
    flat = LayerAnalysis(**fields | {"block_influence": (0.0,) * 4, "angular_distance": ((0.0,) * 5,) * 5})
    assert numbers(marks(drawn(analysis=flat), "rect", "influence"), "height") == [0.0] * 4


def test_picture_of_other_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="modules have 3 layers, the analysis 4"):
        drawn(MODULES[:2])
