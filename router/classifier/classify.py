"""The task classifier at serving time: n-gram weights from one file, summed by numpy.

A decision is a sum of integers, so it is the same on every machine; only its last step is in floating point.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta
from safetensors import SafetensorError, safe_open

from models.errors import ConfigError
from router.classifier.features import Ids, read_features, sample
from router.conversation import Conversation
from router.decision import TaskScores
from router.tasks import GENERAL, SUBJECTS, TASKS, Task

FORMAT_VERSION = 1
SHIPPED = Path(__file__).parents[1] / "data" / "classifier.safetensors"
METADATA_KEY = "fenhe"
CHECKSUM = "sha256"
"""A tensor, since the order in which metadata is written is not fixed: training gives the same bytes every time."""
MAX_CONTEXT_TURNS = 3
"""How many earlier turns count, of the user and of the system each."""

_COLUMNS = 8
"""A feature's weights are padded to 8 bytes, so that they are fetched as one number."""

_ONES = np.ones(1 << 15, np.float32)
"""More of them than the longest text that is read has features."""

NOTHING = TaskScores(
    task=GENERAL, confidence=1.0, probabilities={task: 1.0 if task == GENERAL else 0.0 for task in TASKS}
)
"""The scores of a text without a letter, digit or ideograph."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a classifier file holds besides its weights.

    `labels` in the order of columns, `general` among them. `scale` turns sums of int8 weights into logits;
    `opening_weight` is what the features of the opening count against those of the whole text.
    Below `thresholds[task]` the verdict is `general`. `earlier_weight` and `system_weight` are what the logits of
    earlier user turns and of the system prompt count, times the doubt that the last turn leaves (1 minus the
    probability of its likeliest subject), halved where it is `context_half_chars` long.
    """

    format_version: int
    labels: tuple[Task, ...]
    num_bits: Annotated[int, Meta(ge=8, le=24)]
    scale: float
    opening_weight: float
    bias: tuple[float, ...]
    thresholds: dict[Task, float]
    earlier_weight: float
    system_weight: float
    context_half_chars: Annotated[float, Meta(gt=0)]
    trained_on: str


class TaskClassifier:
    """Scores conversations. Immutable, so safe from any thread."""

    def __init__(self, settings: Settings, weights: npt.NDArray[np.int8]) -> None:
        """Shapes: weights [2 ** num_bits, labels]."""
        self.settings = settings
        padded = np.zeros((len(weights), _COLUMNS), np.int8)
        padded[:, : weights.shape[1]] = weights
        self._table = padded.view(np.uint64).reshape(-1)
        self._num_labels = weights.shape[1]

    @classmethod
    def load(cls, file: Path | None = None) -> "TaskClassifier":
        """Read a file that `fenhe router train` wrote; None is the one that ships.

        Raises: ConfigError that names the file and says what to do.
        """
        return cls(*read_classifier(file or SHIPPED))

    def classify(self, conversation: Conversation) -> TaskScores:
        """Classify the last user turn. What was said before counts more, the less the turn says by itself."""
        if says_nothing(conversation.last) and not (conversation.earlier or conversation.system):
            return NOTHING
        values = self.logits(conversation.last)
        if conversation.earlier or conversation.system:
            values = self._add_context(values, conversation)
        return self._verdict(values)

    def _add_context(self, values: list[float], conversation: Conversation) -> list[float]:
        settings = self.settings
        shares = _softmax(values)
        doubt = 1.0 - max(share for label, share in zip(settings.labels, shares, strict=True) if label != GENERAL)
        room = doubt / (1.0 + len(conversation.last) / settings.context_half_chars)
        for turns, weight in (
            (conversation.earlier, settings.earlier_weight),
            (conversation.system, settings.system_weight),
        ):
            if turns:
                before = self._mean_logits(turns[-MAX_CONTEXT_TURNS:])
                values = [value + weight * room * other for value, other in zip(values, before, strict=True)]
        return values

    def classify_text(self, text: str) -> TaskScores:
        """Classify a text without context."""
        return self.classify(Conversation(last=text))

    def classify_batch(self, texts: Iterable[str]) -> list[TaskScores]:
        """Classify every text by itself, in order."""
        return [self.classify_text(text) for text in texts]

    def logits(self, text: str) -> list[float]:
        """Calibrated logits in the order of `settings.labels`."""
        settings = self.settings
        whole, opening = read_features(text, settings.num_bits)
        sums = self._sum(whole, settings.scale)
        if settings.opening_weight:
            sums = sums + self._sum(opening, settings.scale * settings.opening_weight)
        return [value + bias for value, bias in zip(sums.tolist(), settings.bias, strict=True)]

    def _sum(self, ids: Ids, scale: float) -> npt.NDArray[np.float64]:
        """The sum of the features' weights over the root of their number. Shapes: [labels]."""
        rows = self._table.take(ids.astype(np.intp)).view(np.int8).reshape(-1, _COLUMNS).astype(np.float32)
        # Whole numbers below 2**24: the sum is exact in whatever order it is taken.
        sums: npt.NDArray[np.float64] = (_ONES[: len(rows)] @ rows)[: self._num_labels].astype(np.float64)
        return sums * (scale / math.sqrt(len(ids)))

    def _mean_logits(self, turns: Sequence[str]) -> list[float]:
        logits = [self.logits(turn) for turn in turns]
        return [sum(values) / len(logits) for values in zip(*logits, strict=True)]

    def _verdict(self, values: list[float]) -> TaskScores:
        probabilities = dict(zip(self.settings.labels, _softmax(values), strict=True))
        task = max(TASKS, key=lambda name: probabilities[name])
        confidence = probabilities[task]
        if confidence < self.settings.thresholds.get(task, 0.0):
            task = GENERAL
        return TaskScores(task=task, confidence=confidence, probabilities=probabilities)


def says_nothing(text: str) -> bool:
    """Whether there is no letter, digit or ideograph in what is read of a text."""
    return not any(map(str.isalnum, sample(text)))


def _softmax(values: list[float]) -> list[float]:
    top = max(values)
    exps = [math.exp(value - top) for value in values]
    total = sum(exps)
    return [exp / total for exp in exps]


def read_classifier(file: Path) -> tuple[Settings, npt.NDArray[np.int8]]:
    """Raises: ConfigError."""
    remedy = "train one with `fenhe router train`"
    try:
        with safe_open(str(file), framework="numpy") as stored:
            text = (stored.metadata() or {}).get(METADATA_KEY)
            weights = stored.get_tensor("weights")
            stated = stored.get_tensor(CHECKSUM) if CHECKSUM in stored.keys() else None  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise ConfigError(f"there is no classifier at {file}; {remedy}") from None
    except (OSError, SafetensorError, TypeError, AttributeError) as error:  # the last two: a type numpy lacks
        raise ConfigError(f"{file} is not a classifier: {error}; {remedy}") from error
    if text is None:
        raise ConfigError(f"{file} is not a classifier: it has no settings; {remedy}")
    if stated is not None and stated.tobytes() != checksum(text, weights).tobytes():
        raise ConfigError(f"{file} is damaged: its settings and weights have another SHA-256 than it says; {remedy}")
    try:
        settings = msgspec.json.decode(text, type=Settings)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: its settings cannot be read: {error}; {remedy}") from error
    problems = find_problems(settings, weights)
    if problems:
        raise ConfigError(f"{file}: {'; '.join(problems)}; {remedy}")
    return settings, weights


def checksum(settings: str, weights: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """The SHA-256 that a file has of its settings and weights; earlier versions of fenhe wrote none. Shapes: [32]."""
    return np.frombuffer(hashlib.sha256(settings.encode() + weights.tobytes()).digest(), np.uint8)


def find_problems(settings: Settings, weights: npt.NDArray[np.generic]) -> list[str]:
    """What is inconsistent in a classifier file, as sentences."""
    problems = []
    if settings.format_version != FORMAT_VERSION:
        problems.append(f"format_version {settings.format_version} is not {FORMAT_VERSION}")
    if set(settings.labels) != set(TASKS) or len(settings.labels) != len(TASKS):
        problems.append(f"its labels are not {', '.join(TASKS)}")
    if len(settings.bias) != len(settings.labels):
        problems.append("there is not one bias per label")
    shape = (1 << settings.num_bits, len(settings.labels))
    if weights.shape != shape or weights.dtype != np.int8:
        problems.append(f"its weights are {weights.dtype} {list(weights.shape)}, not int8 {list(shape)}")
    if not set(settings.thresholds) <= set(SUBJECTS):
        problems.append("a threshold is for no task")
    return problems
