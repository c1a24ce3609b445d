"""Options that the benches share: their defaults, and every mistake in its own sentence."""

import argparse
from pathlib import Path

from bench.options import add_json, add_precision, add_rounds, add_student, find_too_small, find_unwritable


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_rounds(parser, 3, "rounds")
    add_json(parser)
    add_student(parser)
    add_precision(parser)
    return parser.parse_args(arguments)


def test_options_have_defaults() -> None:
    options = parse()
    assert (options.rounds, options.json, options.student, options.precision) == (3, None, None, "auto")
    assert parse("--json", "out.json").json == Path("out.json")


def test_numbers_below_the_least_are_named_and_absent_ones_pass() -> None:
    options = argparse.Namespace(rounds=0, rows=2, threads=None)
    found = find_too_small(options, {"rows": 3, "rounds": 1, "threads": 1})
    assert found == ["--rows must be at least 3, not 2", "--rounds must be at least 1, not 0"]


def test_json_needs_a_folder_that_exists(tmp_path: Path) -> None:
    assert find_unwritable(None) == []
    assert find_unwritable(tmp_path / "out.json") == []
    assert find_unwritable(tmp_path / "nowhere" / "out.json") == [f"--json {tmp_path}/nowhere/out.json: no such folder"]
