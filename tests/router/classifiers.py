"""Classifiers small enough to be calculated by hand, and files of them."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from router.classifier.classify import FORMAT_VERSION, METADATA_KEY, Settings, TaskClassifier
from router.tasks import TASKS, Task
from tests.router.ngrams import WORD_SALT, feature_id

NUM_BITS = 16


def classifier_settings(**changes: Any) -> Settings:
    """Nothing is scaled, nothing is refused; an earlier turn counts half of a last turn of no length."""
    plain: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "labels": TASKS,
        "num_bits": NUM_BITS,
        "scale": 1.0,
        "opening_weight": 0.0,
        "bias": (0.0,) * len(TASKS),
        "thresholds": {},
        "earlier_weight": 0.5,
        "system_weight": 0.25,
        "context_half_chars": 5.0,
        "trained_on": "nothing",
    }
    return Settings(**plain | changes)


def random_weights(num_bits: int = NUM_BITS, seed: int = 0) -> npt.NDArray[np.int8]:
    shape = (1 << num_bits, len(TASKS))
    return np.random.default_rng(seed).integers(-127, 128, shape, np.int8)


def word_classifier(words: dict[str, tuple[Task, int]], **changes: Any) -> TaskClassifier:
    """Knows single words alone: each has one weight for one task."""
    weights = np.zeros((1 << NUM_BITS, len(TASKS)), np.int8)
    for word, (task, weight) in words.items():
        weights[feature_id(word, WORD_SALT, NUM_BITS), TASKS.index(task)] = weight
    return TaskClassifier(classifier_settings(**changes), weights)


def write_file(
    file: Path, settings: Settings | dict[str, Any] | None, weights: npt.NDArray[Any], name: str = "weights"
) -> Path:
    metadata = None if settings is None else {METADATA_KEY: msgspec.json.encode(settings).decode()}
    file.write_bytes(save({name: weights}, metadata))
    return file
