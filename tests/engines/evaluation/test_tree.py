"""Which stages paths share."""

import msgspec

from engines.evaluation.tree import StageRun, make_tree
from models.student.cut import exits_of, parse_modules, paths_of
from models.student.manifest import Manifest, StudentPath, Width
from tests.engines.conftest import fake_manifest


def skipping_manifest() -> Manifest:
    modules = parse_modules("a:2,b:1,c:1", 4)
    skip = StudentPath(name="skip", modules=("a", "c"), exit="c_exit")
    return msgspec.structs.replace(
        fake_manifest(), modules=modules, exits=exits_of(modules), paths=(*paths_of(modules), skip)
    )


def test_prefixes_share_their_modules() -> None:
    tree = make_tree(skipping_manifest(), ["a", "full"])
    assert [run.stage for run in tree.runs] == ["a", "a_exit", "b", "c", "c_exit"]
    assert [run.parent for run in tree.runs] == [None, 0, 0, 2, 3]
    assert tree.exits == {"a": 1, "full": 4}
    assert tree.num_slots == 1


def test_widths_share_no_module_and_no_exit() -> None:
    manifest = skipping_manifest()
    widths = (Width(name="slim", neurons=(64,) * 4),)
    full = manifest.full_path
    slim, short = (
        msgspec.structs.replace(path, name=f"slim-{path.name}", width="slim") for path in (full, manifest.path("a"))
    )
    manifest = msgspec.structs.replace(manifest, widths=widths, paths=(*manifest.paths, slim, short))
    tree = make_tree(manifest, ["full", "slim-full", "slim-a"])
    assert [(run.stage, run.width, run.slot) for run in tree.runs] == [
        ("a", "", 0),
        ("b", "", 0),
        ("c", "", 0),
        ("c_exit", "", 0),
        ("a", "slim", 1),
        ("b", "slim", 1),
        ("c", "slim", 1),
        ("c_exit", "", 1),
        ("a_exit", "", 0),
    ]
    assert [run.parent for run in tree.runs] == [None, 0, 1, 2, None, 4, 5, 6, 4]


def test_a_path_that_skips_a_module_runs_the_next_one_apart() -> None:
    tree = make_tree(skipping_manifest(), ["full", "skip"])
    assert StageRun(stage="c", parent=0, slot=1) in tree.runs
    assert StageRun(stage="c", parent=1, slot=0) in tree.runs
    assert tree.stages == ("a", "b", "c", "c_exit")
    assert tree.num_slots == 2
