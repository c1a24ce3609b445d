"""What a classifier says, calculated by hand; what it never does; and which files it refuses."""

import json
import math
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from models.errors import ConfigError
from router.classifier.classify import CHECKSUM, NOTHING, SHIPPED, TaskClassifier, find_problems, read_classifier
from router.classifier.features import read_features
from router.conversation import Conversation
from router.decision import TaskScores
from router.tasks import GENERAL, TASKS, Task
from router.training.augment import make_typos
from router.training.corpus import group_of, read_rows
from router.training.evaluate import judge
from router.training.measure import Figures
from tests.router.classifiers import NUM_BITS, classifier_settings, random_weights, word_classifier, write_file

ROOT = Path(__file__).parents[3]
ANY_TEXT = st.text(st.characters(exclude_categories=()))
WILD = TaskClassifier(
    classifier_settings(scale=0.01, thresholds={"math": 0.5, "legal": 0.9, "fact": 0.0, "creative": 0.3}),
    random_weights(),
)
"""Random weights: every verdict comes up."""

WORDS = {"ab": ("math", 5), "ef": ("legal", 10), "ij": ("fact", 15), "op": ("creative", 20), "abcde": ("math", 7)}
"""A text of two words of two letters has 25 features, one of two words of five letters 49: their roots are whole."""


def by_words(**changes: Any) -> TaskClassifier:
    known: dict[str, tuple[Task, int]] = WORDS  # type: ignore[assignment]
    return word_classifier(known, **changes)


def assert_consistent(scores: TaskScores, thresholds: dict[Task, float]) -> None:
    assert tuple(scores.probabilities) == TASKS
    assert all(0.0 <= value <= 1.0 for value in scores.probabilities.values())
    assert math.isclose(sum(scores.probabilities.values()), 1.0, abs_tol=1e-9)
    assert scores.confidence == max(scores.probabilities.values())
    likeliest = max(scores.probabilities, key=scores.probabilities.__getitem__)
    is_sure = scores.confidence >= thresholds.get(likeliest, 0.0)
    assert scores.task == (likeliest if is_sure else GENERAL)


@given(text=ANY_TEXT)
@settings(deadline=None)
def test_classifier_answers_any_text(text: str) -> None:
    assert_consistent(WILD.classify_text(text), WILD.settings.thresholds)


@given(last=ANY_TEXT, earlier=st.lists(ANY_TEXT, max_size=5), system=st.lists(ANY_TEXT, max_size=5))
@settings(deadline=None)
def test_classifier_answers_any_conversation(last: str, earlier: list[str], system: list[str]) -> None:
    scores = WILD.classify(Conversation(last=last, earlier=tuple(earlier), system=tuple(system)))
    assert_consistent(scores, WILD.settings.thresholds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\t",
        "\0",
        "\0" * 5000,
        "\ud800",
        "\udc00\ud800" * 800,
        "ﷺ" * 960,
        "x" * 10_000_000,
        "中" * 10_000_000,
    ],
    ids=["empty", "space", "breaks", "nul", "nuls", "surrogate", "surrogates", "unfolding", "10 MB", "30 MB"],
)
def test_classifier_answers_odd_texts(text: str) -> None:
    assert_consistent(WILD.classify_text(text), WILD.settings.thresholds)


def test_classifier_bears_the_largest_weights() -> None:
    weights = np.full((1 << NUM_BITS, len(TASKS)), -127, np.int8)
    weights[:, 1] = 127
    scores = TaskClassifier(classifier_settings(scale=100.0), weights).classify_text("a long text " * 100)
    assert_consistent(scores, {})
    assert scores.probabilities["legal"] == 1.0


def test_logits_are_weights_over_the_root_of_the_features() -> None:
    classifier = by_words(scale=2.0, bias=(0.5, 0.0, -1.0, 0.0, 0.25))
    assert classifier.logits("ab ef") == [0.5 + 2.0 * 5 / 5, 2.0 * 10 / 5, -1.0, 0.0, 0.25]


def test_logits_add_the_opening_by_its_weight() -> None:
    """`ab ef ` opens with all it has; ` ab ef gh...` beyond 48 characters opens with less than the whole."""
    weights = np.zeros((1 << NUM_BITS, len(TASKS)), np.int8)
    for text, task in (("ab ef", 0), ("x" * 5 + " " + "y " * 40, 1)):
        whole, opening = read_features(text, NUM_BITS)
        weights[opening, task] = 4
        expected = weights[whole, task].sum() / len(whole) ** 0.5 + 0.25 * 4 * len(opening) ** 0.5
        classifier = TaskClassifier(classifier_settings(opening_weight=0.25), weights)
        assert classifier.logits(text)[task] == pytest.approx(expected)


def test_logits_count_every_occurrence() -> None:
    """` ab ab `: 25 features."""
    assert by_words().logits("ab ab") == [2.0, 0.0, 0.0, 0.0, 0.0]


def test_probabilities_are_the_softmax_of_logits() -> None:
    scores = by_words(bias=(math.log(2), 0.0, 0.0, 0.0, math.log(4))).classify_text("zz zz")
    expected = {"math": 2 / 9, "legal": 1 / 9, "fact": 1 / 9, "creative": 1 / 9, "general": 4 / 9}
    assert scores.probabilities == pytest.approx(expected)
    assert scores.task == GENERAL
    assert scores.confidence == pytest.approx(4 / 9)


def test_labels_may_stand_in_any_order() -> None:
    weights = np.zeros((1 << NUM_BITS, len(TASKS)), np.int8)
    labels = tuple(reversed(TASKS))
    bias = (0.0, math.log(6), 0.0, 0.0, 0.0)
    scores = TaskClassifier(classifier_settings(labels=labels, bias=bias), weights).classify_text("x")
    assert scores.task == "creative"
    assert scores.confidence == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("thresholds", "verdict"),
    [
        ({}, "math"),
        ({"math": 0.59}, "math"),
        ({"math": 0.61}, "general"),
        ({"legal": 0.9, "fact": 0.9, "creative": 0.9}, "math"),
    ],
)
def test_verdict_is_general_below_the_threshold(thresholds: dict[Task, float], verdict: str) -> None:
    classifier = by_words(bias=(math.log(6), 0.0, 0.0, 0.0, 0.0), thresholds=thresholds)
    scores = classifier.classify_text("zz zz")
    assert scores.task == verdict
    assert scores.confidence == scores.probabilities["math"] == pytest.approx(0.6)


def test_verdict_takes_a_probability_equal_to_the_threshold() -> None:
    classifier = by_words(bias=(math.log(6), 0.0, 0.0, 0.0, 0.0))
    exactly = classifier.classify_text("zz zz").confidence
    assert by_words(bias=classifier.settings.bias, thresholds={"math": exactly}).classify_text("zz zz").task == "math"


def test_ties_go_to_the_first_task() -> None:
    assert by_words().classify_text("zz zz").task == TASKS[0]


def bits_of(classifier: TaskClassifier, conversation: Conversation) -> list[float]:
    """Logits of the four subjects in units of log 2, from probabilities; `general` has 0 in these tests."""
    probabilities = classifier.classify(conversation).probabilities
    return [math.log2(probabilities[task] / probabilities[GENERAL]) for task in TASKS[:-1]]


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (Conversation(last="ab cd"), [1, 0, 0, 0]),
        (Conversation(last="ab cd", earlier=("ef gh",)), [1, 2 * 0.5 / 3, 0, 0]),
        (Conversation(last="ab cd", system=("ef gh",)), [1, 2 * 0.25 / 3, 0, 0]),
        (Conversation(last="ab cd", earlier=("ef gh", "ij kl")), [1, 2 / 2 * 0.5 / 3, 3 / 2 * 0.5 / 3, 0]),
        (Conversation(last="ab cd", earlier=("ef gh",), system=("ij kl",)), [1, 2 * 0.5 / 3, 3 * 0.25 / 3, 0]),
        (Conversation(last="ab cd", earlier=("ab cd",)), [1 + 0.5 / 3, 0, 0, 0]),
        (Conversation(last="", earlier=("ef gh",)), [0, 2 * 0.5 * 4 / 5, 0, 0]),
        (Conversation(last="op qr", earlier=("ef gh",)), [0, 2 * 0.5 * 1 / 5 / 2, 0, 4]),
        (Conversation(last="abcde vwxyz", earlier=("ef gh",)), [1, 2 * 0.5 * 2 / 3 * 5 / 16, 0, 0]),
        (Conversation(last="ab cd", earlier=("op op", "zz zz", "ef gh", "zz zz")), [1, 2 / 3 * 0.5 / 3, 0, 0]),
        (Conversation(last="ab cd", system=("op op", "zz zz", "ef gh", "zz zz")), [1, 2 / 3 * 0.25 / 3, 0, 0]),
    ],
    ids=[
        "alone",
        "earlier",
        "system",
        "two",
        "both",
        "same",
        "no last",
        "sure last",
        "long last",
        "old earlier",
        "old system",
    ],
)
def test_context_counts_by_its_weight_the_doubt_and_the_length_of_the_last_turn(
    conversation: Conversation, expected: list[float]
) -> None:
    """A logit of log 2 for math leaves 1 - 2/6 of doubt, none at all 1 - 1/5, four for creative 1 - 16/20.

    Five characters halve what is added, eleven leave 5/16 of it.
    """
    assert bits_of(by_words(scale=math.log(2)), conversation) == pytest.approx(expected, abs=1e-12)


def test_context_is_not_held_back_by_a_likely_general() -> None:
    """Doubt is about subjects: at 16/20 for `general` the likeliest of them has 1/20."""
    bias = (0.0, 0.0, 0.0, 0.0, 4 * math.log(2))
    classifier = by_words(scale=math.log(2), bias=bias)
    found = classifier.classify(Conversation(last="zz zz", earlier=("ef gh",))).probabilities
    assert math.log2(found["legal"] / found["math"]) == pytest.approx(2 * 0.5 * 19 / 20 / 2)


def test_context_decides_for_a_short_last_turn_only() -> None:
    """The last turn says math with 1; before it legal was said with 2."""
    before = ("ef gh",)
    classifier = by_words(scale=math.log(2), earlier_weight=2.0)
    assert classifier.classify(Conversation(last="ab cd", earlier=before)).task == "legal"
    assert classifier.classify(Conversation(last="abcde vwxyz", earlier=before)).task == "math"


@given(texts=st.lists(ANY_TEXT, max_size=6))
@settings(deadline=None, max_examples=50)
def test_batch_equals_one_by_one(texts: list[str]) -> None:
    assert WILD.classify_batch(texts) == [WILD.classify_text(text) for text in texts]


@given(text=ANY_TEXT)
@settings(deadline=None, max_examples=50)
def test_text_alone_is_a_conversation_without_context(text: str) -> None:
    assert WILD.classify(Conversation(last=text)) == WILD.classify_text(text)


SAME = """
import sys
from pathlib import Path
from router.classifier.classify import TaskClassifier
from router.conversation import Conversation
classifier = TaskClassifier.load(Path(sys.argv[1]))
for text in ("Solve 3x + 12 = 48.", "第一章 合同法 clause 7", "don't \\ud800 stop", "z y" * 2000, ""):
    print(classifier.classify(Conversation(last=text, earlier=("a", "b"), system=("c",))))
"""


def test_scores_are_the_same_in_every_process(tmp_path: Path) -> None:
    """The same text of the same floating point numbers: every bit."""
    file = write_file(tmp_path / "wild.safetensors", WILD.settings, random_weights())
    outputs = set()
    for hash_seed, threads in (("1", "1"), ("77", "2")):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", SAME, str(file)], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        outputs.add(done.stdout)
    texts = ("Solve 3x + 12 = 48.", "第一章 合同法 clause 7", "don't \ud800 stop", "z y" * 2000, "")
    here = [WILD.classify(Conversation(last=text, earlier=("a", "b"), system=("c",))) for text in texts]
    assert outputs == {"".join(f"{scores}\n" for scores in here).encode()}


def test_file_gives_the_classifier_back(tmp_path: Path) -> None:
    file = write_file(tmp_path / "wild.safetensors", WILD.settings, random_weights())
    read_settings, weights = read_classifier(file)
    assert read_settings == WILD.settings
    assert np.array_equal(weights, random_weights())
    assert TaskClassifier.load(file).classify_text("What is 2 + 2?") == WILD.classify_text("What is 2 + 2?")


def stored(dtype: str, num_bytes: int) -> bytes:
    """A file of zeros in a type that numpy need not know."""
    tensor = {"dtype": dtype, "shape": [1 << NUM_BITS, 5], "data_offsets": [0, num_bytes * 5 << NUM_BITS]}
    metadata = {"fenhe": msgspec.json.encode(classifier_settings()).decode()}
    header = json.dumps({"__metadata__": metadata, "weights": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(num_bytes * 5 << NUM_BITS)


def test_shipped_file_has_a_checksum_and_one_of_an_earlier_version_is_read_without(tmp_path: Path) -> None:
    with safe_open(str(SHIPPED), framework="numpy") as stored:
        assert CHECKSUM in stored.keys()  # noqa: SIM118
    file = tmp_path / "damaged.safetensors"
    content = bytearray(SHIPPED.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        read_classifier(file)
    read_settings, weights = read_classifier(SHIPPED)
    write_file(file, read_settings, weights)
    assert read_classifier(file)[0] == read_settings


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not a classifier",
        np.random.default_rng(5).bytes(4096),
        struct.pack("<Q", 1 << 62) + b"{}",
        stored("I8", 1)[:-1],
        stored("BF16", 2),
        stored("F8_E4M3", 1),
        stored("F32", 4),
        stored("U8", 1),
    ],
    ids=["empty", "short", "text", "random", "huge header", "cut off", "bf16", "fp8", "fp32", "uint8"],
)
def test_file_that_is_no_classifier_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        TaskClassifier.load(file)
    assert str(file) in str(error.value)
    assert "fenhe router train" in str(error.value)


def test_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no classifier at .*gone\.safetensors; train one"):
        TaskClassifier.load(tmp_path / "gone.safetensors")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        TaskClassifier.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format_version": 2}, "format_version 2 is not 1"),
        ({"labels": (*TASKS[:-1], "poetry")}, "poetry"),
        ({"labels": TASKS[:-1]}, "its labels are not"),
        ({"labels": (*TASKS[:-1], "math")}, "its labels are not"),
        ({"bias": (0.0,) * 4}, "one bias per label"),
        ({"num_bits": NUM_BITS - 1}, "its weights are int8"),
        ({"num_bits": 7}, "num_bits"),
        ({"num_bits": 64}, "num_bits"),
        ({"thresholds": {"general": 0.5}}, "a threshold is for no task"),
        ({"thresholds": {"poetry": 0.5}}, "poetry"),
        ({"context_half_chars": 0.0}, "context_half_chars"),
        ({"scale": "1"}, "scale"),
        ({"new_in_a_later_version": 1}, "new_in_a_later_version"),
    ],
)
def test_file_with_wrong_settings_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    table = msgspec.to_builtins(classifier_settings()) | changes
    file = write_file(tmp_path / "bad.safetensors", table, random_weights())
    with pytest.raises(ConfigError) as error:
        TaskClassifier.load(file)
    assert str(file) in str(error.value)
    assert problem in str(error.value)


def test_file_with_settings_left_out_is_refused(tmp_path: Path) -> None:
    table = msgspec.to_builtins(classifier_settings())
    del table["scale"]
    file = write_file(tmp_path / "bad.safetensors", table, random_weights())
    with pytest.raises(ConfigError, match=r"bad\.safetensors.*scale"):
        TaskClassifier.load(file)


def test_file_without_settings_is_refused(tmp_path: Path) -> None:
    file = write_file(tmp_path / "bad.safetensors", None, random_weights())
    with pytest.raises(ConfigError, match=r"bad\.safetensors.*no settings"):
        TaskClassifier.load(file)


def test_file_without_weights_is_refused(tmp_path: Path) -> None:
    file = write_file(tmp_path / "bad.safetensors", classifier_settings(), random_weights(), "other")
    with pytest.raises(ConfigError, match=r"bad\.safetensors.*weights"):
        TaskClassifier.load(file)


@pytest.mark.parametrize("shape", [(1 << NUM_BITS,), (5, 1 << NUM_BITS), (1 << NUM_BITS, 4), (1 << NUM_BITS, 5, 1)])
def test_file_with_weights_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = write_file(tmp_path / "bad.safetensors", classifier_settings(), np.zeros(shape, np.int8))
    with pytest.raises(ConfigError, match=r"bad\.safetensors: its weights are int8"):
        TaskClassifier.load(file)


def test_problems_come_together() -> None:
    wrong = classifier_settings(format_version=9, labels=TASKS[:3], thresholds={"general": 0.1})
    assert len(find_problems(wrong, np.zeros((2, 2), np.float32))) == 5
    assert find_problems(classifier_settings(), random_weights()) == []


@pytest.fixture(scope="module")
def shipped() -> TaskClassifier:
    return TaskClassifier.load()


def test_shipped_classifier_tells_plain_cases(shipped: TaskClassifier) -> None:
    texts: dict[str, Task] = {
        "Solve the equation 3x + 12 = 48 for x.": "math",
        "解方程：3x + 12 = 48": "math",
        "Is a contract signed under duress enforceable in court?": "legal",
        "Who wrote the novel Pride and Prejudice?": "fact",
        "Write a short poem about autumn rain.": "creative",
        "写一首关于春天的诗": "creative",
        "Cancel my dinner reservation for tomorrow night.": "general",
    }
    assert [scores.task for scores in shipped.classify_batch(texts)] == list(texts.values())


def test_shipped_classifier_is_a_few_megabytes() -> None:
    assert SHIPPED.stat().st_size < 8 << 20


def dev_figures(classifier: TaskClassifier, typo_share: float = 0.0) -> Figures:
    places = [folder / "shared" / "data" / "router" / "dev.jsonl" for folder in (ROOT.parent, ROOT)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        pytest.skip(f"the dev rows are not there: {places[0]}")
    rng = random.Random(0)
    rows = [msgspec.structs.replace(row, text=make_typos(row.text, typo_share, rng)) for row in read_rows(file)]
    sizes = Counter(group_of(row) for row in rows)
    rows = [row for row in rows if sizes[group_of(row)] > 1]  # a source of one row would be a quarter of its task
    return judge(classifier, rows)[1]


def test_shipped_classifier_is_calibrated_on_dev_rows(shipped: TaskClassifier) -> None:
    found = {name: value or 0.0 for name, value in dev_figures(shipped).items()}
    assert found["ece"] <= 0.03
    assert found["coverage90_accuracy"] >= 0.96
    assert found["other_recall"] >= 0.75
    assert found["in_scope_rejected"] <= 0.04
    assert min(found["macro_en"], found["macro_zh"]) >= 0.9


def test_shipped_classifier_bears_typos_on_dev_rows(shipped: TaskClassifier) -> None:
    plain, typed = dev_figures(shipped), dev_figures(shipped, 0.1)
    for name in ("macro_en", "macro_zh"):
        assert (plain[name] or 0.0) - (typed[name] or 0.0) <= 0.05


@pytest.mark.parametrize("text", ["", "  \n", "???", "…", "🙂", "\0", "\ud800", "。！"])
def test_text_that_says_nothing_is_general(text: str) -> None:
    assert by_words(bias=(5.0, 0.0, 0.0, 0.0, 0.0)).classify_text(text) == NOTHING


@pytest.mark.parametrize("text", ["1", "a", "中", "¿é?"])
def test_one_letter_says_something(text: str) -> None:
    assert by_words(bias=(5.0, 0.0, 0.0, 0.0, 0.0)).classify_text(text).task == "math"


def test_turn_that_says_nothing_is_judged_by_what_was_said_before() -> None:
    scores = by_words(scale=9.0).classify(Conversation(last="?", earlier=("ab cd",)))
    assert scores.task == "math"


def test_shipped_thresholds_can_refuse(shipped: TaskClassifier) -> None:
    """The likeliest of five is always above a fifth."""
    assert all(value > 1 / len(TASKS) for value in shipped.settings.thresholds.values())
    assert set(shipped.settings.thresholds) == set(TASKS) - {GENERAL}
