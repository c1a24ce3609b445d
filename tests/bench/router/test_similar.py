"""`fenhe bench similar`: its shares on made-up pairs, the pairs that ship, and files it cannot read."""

from pathlib import Path

import pytest

from bench.router.similar import measure, read_pairs, run
from models.errors import ConfigError


def test_bench_counts_recall_and_false_hits_by_kind(tmp_path: Path) -> None:
    file = tmp_path / "pairs.toml"
    file.write_text(
        'same = [{a = "why is the sky blue", b = "why is the sky blue?"}, {a = "one thing", b = "quite another"}]\n'
        'different = [{kind = "word", a = "drink hot tea", b = "drink hot tea "}, {kind = "x", a = "1", b = "2"}]\n'
    )
    (row,) = measure(read_pairs(file), (0.8,))
    assert (row.recall, row.false_hits, row.kinds) == (0.5, 0.5, {"word": 1})


def test_bench_of_the_shipped_pairs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = read_pairs()
    assert {pair.kind for pair in pairs.different} >= {"number", "negation", "name"}
    assert run([]) == 0
    assert f"{len(pairs.same)} paraphrases, {len(pairs.different)} near misses" in capsys.readouterr().out
    assert run(["--json"]) == 0
    assert '"false_hits"' in capsys.readouterr().out


@pytest.mark.parametrize("text", ["same = 3", "same = []\ndifferent = []", "not toml", ""])
def test_bench_refuses_pairs_it_cannot_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pairs.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"pairs\.toml"):
        read_pairs(file)
