from typing import Any

import pytest

from engines.remote.config import RemoteConfig
from engines.remote.student import RemoteStudent
from models.errors import BadRequest
from models.evaluation.compute import compute_share

URLS = ("http://a/v1", "http://b/v1")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"urls": ("http://a/v1", "http://a/v1")}, "twice"),
        ({"urls": URLS, "key_env": ("A", "B", "C")}, "one per URL"),
        ({"urls": URLS, "model": "m", "paths": {"full": "x"}}, "contradict"),
        ({"urls": URLS, "paths": {"a:b": "x"}}, "'a:b'"),
        ({"urls": URLS, "paths": {"full": "x"}, "costs": {"fll": 0.5}}, "'fll'"),
        ({"urls": URLS, "paths": {"full": "x"}, "costs": {"full": 1.0}, "keeps": {"fll.math": 0.5}}, "'fll'"),
        ({"urls": URLS, "paths": {"s": "y", "full": "x"}, "keeps": {"s.math": 0.5}}, "costs has none for full, s"),
        ({"urls": URLS, "max_tries": 0}, "max_tries"),
    ],
)
def test_contradictions_are_named(options: dict[str, Any], named: str) -> None:
    problems = RemoteConfig(**options).problems()
    assert any(named in problem.said for problem in problems)


def test_costs_become_shares_of_compute() -> None:
    config = RemoteConfig(urls=URLS, paths={"s": "1b", "m": "7b", "full": "70b"}, costs={"s": 0.02, "m": 0.1})
    manifest = RemoteStudent("far", config).manifest
    shares = {path.name: compute_share(manifest, path) for path in manifest.paths}
    assert shares == pytest.approx({"s": 0.02, "m": 0.1, "full": 1.0})
    assert manifest.full_path.name == "full"
    assert [path.name for path in manifest.paths_by_depth] == ["s", "m", "full"]


def test_without_costs_the_last_path_is_the_full_one() -> None:
    manifest = RemoteStudent("far", RemoteConfig(urls=URLS, paths={"a": "x", "b": "y"})).manifest
    assert manifest.full_path.name == "b"


def test_what_a_path_keeps_decides_about_tasks() -> None:
    config = RemoteConfig(
        urls=URLS,
        paths={"s": "1b", "full": "70b"},
        costs={"s": 0.1, "full": 1.0},
        keeps={"s.fact": 0.9, "full.math": 1.0},
    )
    manifest = RemoteStudent("far", config).manifest
    assert manifest.tasks == {"fact": "s", "math": "full"}
    found = manifest.find_retention("s", "fact", "remote")
    assert found is not None
    assert found.low == 0.9


def test_a_student_has_one_path_and_its_own_name_as_the_model() -> None:
    assert RemoteStudent("far", RemoteConfig(urls=URLS)).models == {"full": "far"}
    assert RemoteStudent("far", RemoteConfig(urls=URLS, model="x")).models == {"full": "x"}


def test_whoever_needs_the_tokenizer_is_told_where_it_is() -> None:
    tokenizer = RemoteStudent("far", RemoteConfig(urls=URLS)).tokenizer
    with pytest.raises(BadRequest, match="`far` runs elsewhere"):
        tokenizer.encode("x")
