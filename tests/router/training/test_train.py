"""From rows to a classifier file, on a handful of rows."""

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.errors import ConfigError
from router.classifier.classify import TaskClassifier, read_classifier
from router.classifier.features import read_features
from router.tasks import GENERAL, TASKS
from router.training.corpus import Row
from router.training.fit import FitConfig, bag_of
from router.training.train import TrainConfig, Trained, judge_unseen, read_corpus, train

ROOT = Path(__file__).parents[3]

PROMPTS = {
    "en": {
        "math": ["solve [[2..99]] x + [[2..99]] = [[2..99]]", "what is the sum of [[2..99]] and [[2..99]]"],
        "legal": ["is a contract with a [[minor|thief|bank]] binding", "can my landlord sue me over [[rent|noise]]"],
        "fact": ["who wrote [[the iliad|hamlet|emma]]", "what is the capital of [[france|peru|chad]]"],
        "creative": ["write a poem about [[rain|love|the sea]]", "tell a story of a [[dragon|ghost|king]]"],
        "other": ["book a table for [[2..9]]", "cancel my [[flight|card|meeting]] please"],
    },
    "zh": {
        "math": ["解方程 [[2..99]]x + [[2..99]] = [[2..99]]"],
        "legal": ["与[[未成年人|银行]]签订的合同有效吗"],
        "fact": ["[[法国|秘鲁|中国]]的首都是哪里"],
        "creative": ["写一首关于[[雨|爱情|大海]]的诗"],
        "other": ["帮我订[[2..9]]个人的位子"],
    },
}


def config(folder: Path, seed: int = 0) -> TrainConfig:
    fitting = FitConfig(num_bits=12)
    return TrainConfig(fit=fitting, num_variants=1, num_folds=2, seed=seed, grammar_folder=folder / "grammar")


def fill(folder: Path) -> Path:
    """Grammars, and real rows of three data sets per language: prompts in other words."""
    rng = random.Random(0)
    rows = []
    for lang, labels in PROMPTS.items():
        (folder / "grammar" / lang).mkdir(parents=True)
        for label, prompts in labels.items():
            listed = ", ".join(f'"{prompt}"' for prompt in prompts)
            text = f'[[styles]]\nname = "plain"\nprompts = [{listed}]\n'
            (folder / "grammar" / lang / f"{label}.toml").write_text(text, encoding="utf-8")
            for source in ("A", "B first", "B second"):
                words = prompts[0].partition("[[")[0] + f" {rng.randint(2, 99)}"
                rows.append({"text": words, "label": label, "lang": lang, "source": f"{source} {lang}"})
    (folder / "train.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data: Path) -> tuple[Trained, Path, list[str]]:
    lines: list[str] = []
    file = data / "out" / "new" / "classifier.safetensors"
    return train(data, file, config(data), lines.append), file, lines


def test_trained_file_is_a_classifier_that_knows_its_rows(trained: tuple[Trained, Path, list[str]]) -> None:
    result, file, _ = trained
    settings, weights = read_classifier(file)
    assert weights.shape == (1 << 12, len(TASKS))
    assert int(np.abs(weights).max()) == 127
    assert settings.trained_on == result.digest
    assert len(result.digest) == 64
    classifier = TaskClassifier.load(file)
    assert classifier.classify_text("solve 7 x + 5 = 90").task == "math"
    assert classifier.classify_text("写一首关于大海的诗").task == "creative"


@pytest.mark.parametrize("place", [0.2, 0.5, 0.999])
def test_trained_file_with_a_flipped_bit_is_damaged(
    trained: tuple[Trained, Path, list[str]], tmp_path: Path, place: float
) -> None:
    data = bytearray(trained[1].read_bytes())
    data[int(len(data) * place)] ^= 1
    file = tmp_path / "flipped.safetensors"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"{file} is damaged: .*fenhe router train"):
        read_classifier(file)


def test_trained_file_whose_settings_were_edited_is_damaged(
    trained: tuple[Trained, Path, list[str]], tmp_path: Path
) -> None:
    data = trained[1].read_bytes()
    file = tmp_path / "edited.safetensors"
    file.write_bytes(data.replace(rb"\"scale\":0.0", rb"\"scale\":9.0", 1))
    assert file.read_bytes() != data
    with pytest.raises(ConfigError, match="is damaged"):
        read_classifier(file)


def test_trained_file_has_the_context_weights_of_the_configuration(trained: tuple[Trained, Path, list[str]]) -> None:
    settings, _ = read_classifier(trained[1])
    wanted = TrainConfig()
    assert settings.earlier_weight == wanted.earlier_weight
    assert settings.system_weight == wanted.system_weight
    assert settings.context_half_chars == wanted.context_half_chars


def test_trained_file_is_the_model_calibrated_in_eight_bits(trained: tuple[Trained, Path, list[str]]) -> None:
    result, file, _ = trained
    classifier = TaskClassifier.load(file)
    for text in ("solve 7 x + 5 = 90", "book a table", "法国的首都", "zebra"):
        logits = result.model.logits(bag_of(read_features(text, 12), 0.5)).astype(np.float64)
        expected = result.calibration.probabilities(logits[None])[0]
        found = classifier.classify_text(text).probabilities
        assert list(found.values()) == pytest.approx(expected.tolist(), abs=0.02)
    assert set(classifier.settings.thresholds.values()) == {result.calibration.threshold}


def test_training_judges_every_real_row_unseen(trained: tuple[Trained, Path, list[str]]) -> None:
    result, _, _ = trained
    assert len(result.unseen.rows) == 30
    assert not [row for row in result.unseen.rows if row.is_written]
    assert {row for row in result.rows if not row.is_written} == set(result.unseen.rows)
    assert result.unseen.probabilities.shape == (30, len(TASKS))
    assert result.unseen.probabilities.sum(axis=1).tolist() == pytest.approx([1.0] * 30)
    for verdict, shares in zip(result.unseen.verdicts, result.unseen.probabilities, strict=True):
        assert verdict in {TASKS[int(shares.argmax())], GENERAL}


def test_training_tells_what_it_does(trained: tuple[Trained, Path, list[str]]) -> None:
    lines = trained[2]
    assert "2 of 2 groups of sources left out" in lines
    assert any(line.startswith("calibrated") for line in lines)


def test_training_leaves_no_partial_file(trained: tuple[Trained, Path, list[str]]) -> None:
    assert [file.name for file in trained[1].parent.iterdir()] == ["classifier.safetensors"]


AGAIN = """
import sys
from pathlib import Path
from router.training.corpus import Row
from router.training.fit import FitConfig
from router.training.train import TrainConfig, train
data, out = map(Path, sys.argv[1:])
fitting = FitConfig(num_bits=12)
config = TrainConfig(fit=fitting, num_variants=1, num_folds=2, seed=0, grammar_folder=data / "grammar")
train(data, out, config, lambda line: None)
"""


def test_same_seed_gives_the_same_bytes_in_another_process(
    data: Path, trained: tuple[Trained, Path, list[str]], tmp_path: Path
) -> None:
    again = tmp_path / "again.safetensors"
    environment = os.environ | {"PYTHONHASHSEED": "99", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", AGAIN, str(data), str(again)], cwd=ROOT, env=environment, check=True)
    assert again.read_bytes() == trained[1].read_bytes()


def test_another_seed_gives_another_file(data: Path, trained: tuple[Trained, Path, list[str]], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    train(data, other, config(data, seed=1), lambda _: None)
    assert read_classifier(other)[0].trained_on != trained[0].digest
    assert not np.array_equal(read_classifier(other)[1], read_classifier(trained[1])[1])


def test_corpus_has_a_row_and_its_variants_for_every_text(data: Path) -> None:
    corpus = read_corpus(data, config(data), lambda _: None)
    assert len(corpus.rows) == len(corpus.bags) == len(corpus.labels)
    assert {len(bags) for bags in corpus.bags} == {2}
    first = bag_of(read_features(corpus.rows[0].text, 12), 0.5)
    assert corpus.bags[0][0].ids.tolist() == first.ids.tolist()
    assert TASKS[corpus.labels[0]] == corpus.rows[0].label


def test_rows_are_judged_by_models_that_did_not_see_them(data: Path, tmp_path: Path) -> None:
    """Two data sets contradict each other: left out, each gets what the other says."""
    rows = [
        Row(text="zebra crossing", label=label, lang="en", source=f"{source} {number}")
        for source, label in (("A", "math"), ("B", "legal"))
        for number in range(8)
    ]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    corpus = read_corpus(tmp_path, config(data), lambda _: None)
    logits, tested = judge_unseen(corpus, config(data), lambda _: None)
    likeliest = {
        (corpus.rows[index].label, TASKS[int(best)]) for index, best in zip(tested, logits.argmax(axis=1), strict=True)
    }
    assert likeliest == {("math", "legal"), ("legal", "math")}
    assert sorted(tested) == list(range(16))


def test_digest_is_of_the_rows(data: Path, trained: tuple[Trained, Path, list[str]], tmp_path: Path) -> None:
    other = fill(tmp_path)
    assert read_corpus(other, config(other), lambda _: None).digest == trained[0].digest
    with (other / "train.jsonl").open("ab") as file:
        file.write(b'\n{"text": "one more", "label": "fact", "lang": "en"}')
    assert read_corpus(other, config(other), lambda _: None).digest != trained[0].digest


def test_label_without_rows_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "1+1", "label": "math", "lang": "en"}')
    bare = TrainConfig(grammar_folder=tmp_path)
    with pytest.raises(ConfigError, match=r"train\.jsonl: no rows for creative, fact, legal, other"):
        train(tmp_path, tmp_path / "out", bare, lambda _: None)
    assert not (tmp_path / "out").exists()


def test_data_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.jsonl: cannot be read"):
        train(tmp_path, tmp_path / "out", config(tmp_path), lambda _: None)


def test_prompts_under_an_unknown_label_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    (folder / "grammar" / "en" / "maths.toml").write_text('[[styles]]\nname = "x"\nprompts = ["1 + 1"]\n')
    with pytest.raises(ConfigError, match="no label is called maths"):
        read_corpus(folder, config(folder), lambda _: None)


def test_one_data_set_alone_is_refused(tmp_path: Path) -> None:
    rows = [Row(text=f"{label} text", label=label, lang="en", source="A") for label in PROMPTS["en"]]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    corpus = read_corpus(tmp_path, config(tmp_path), lambda _: None)
    with pytest.raises(ConfigError, match="one data set"):
        judge_unseen(corpus, config(tmp_path), lambda _: None)
