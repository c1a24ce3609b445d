"""A classifier on labelled rows: figures, times, tables, and a page with plots."""

import html
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from models.errors import ConfigError
from router.classifier.classify import TaskClassifier
from router.tasks import GENERAL, TASKS
from router.training.corpus import Row
from router.training.measure import (
    MEANINGS,
    Figures,
    Judged,
    confusion,
    figures,
    reliability,
    source_accuracy,
    subject_confidence,
)

_SVG_SALT = "fenhe"


def judge(classifier: TaskClassifier, rows: Sequence[Row]) -> tuple[Judged, Figures]:
    """Classify every row by itself; all figures, `p50_ms` and `p99_ms` per decision among them."""
    for row in rows[:100]:  # warm caches: the first decisions of a process are slower than all that follow
        classifier.classify_text(row.text)
    scores, times_ms = [], []
    for row in rows:
        begun_s = time.perf_counter()
        scores.append(classifier.classify_text(row.text))
        times_ms.append((time.perf_counter() - begun_s) * 1000)
    judged = Judged(
        rows=rows,
        verdicts=[score.task for score in scores],
        probabilities=np.array([[score.probabilities[task] for task in TASKS] for score in scores]),
    )
    p50_ms, p99_ms = np.percentile(times_ms, (50, 99)).tolist()
    return judged, figures(judged) | {"p50_ms": p50_ms, "p99_ms": p99_ms}


def write_json(file: Path, judged: Judged, found: Figures) -> None:
    """`{"figures": {...}, "sources": {"LANG LABEL SOURCE": {"accuracy", "rows"}}}`."""
    sources = {
        " ".join(key): {"accuracy": round(accuracy, 4), "rows": size}
        for key, (accuracy, size) in source_accuracy(judged).items()
    }
    body = msgspec.json.format(msgspec.json.encode({"figures": found, "sources": sources}), indent=2)
    file.write_bytes(body + b"\n")


def describe(judged: Judged, found: Figures) -> str:
    """Tables for a terminal: figures, classes, sources."""
    lines = [f"{name:20} {_number(value):>7}  {MEANINGS[name]}" for name, value in found.items()]
    lines += ["", f"{'label':10} {'verdict: ' + ' '.join(f'{task:>9}' for task in TASKS)}"]
    for task, counts in zip(TASKS, confusion(judged).tolist(), strict=True):
        lines.append(f"{_label(task):10} {'':9}{' '.join(f'{count:9d}' for count in counts)}")
    lines += ["", f"{'language':9} {'label':9} {'source':36} {'right':>6} {'rows':>6}"]
    for (lang, label, source), (accuracy, size) in source_accuracy(judged).items():
        lines.append(f"{lang:9} {label:9} {source[:36]:36} {accuracy:6.3f} {size:6d}")
    return "\n".join(lines)


def _label(task: str) -> str:
    return "other" if task == GENERAL else task


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def write_report(file: Path, judged: Judged, found: Figures, title: str) -> None:
    """One HTML page: figures, confusion matrix, reliability diagram, coverage against accuracy, sources.

    Raises: ConfigError without matplotlib.
    """
    plots = [_confusion_plot(judged), _reliability_plot(judged), _coverage_plot(judged)]
    table = html.escape(describe(judged, found))
    style = "body{font:15px system-ui;margin:2em auto;max-width:62em}svg{max-width:100%;height:auto}"
    file.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
        f"<h1>{html.escape(title)}</h1><pre>{table}</pre>{''.join(plots)}\n",
        encoding="utf-8",
    )


def _figure() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise ConfigError("a report with plots needs matplotlib: pip install 'fenhe[router]'") from None
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = _SVG_SALT
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6.0, 4.2))


def _svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _confusion_plot(judged: Judged) -> str:
    figure, axes = _figure()
    counts = confusion(judged)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(TASKS)), TASKS)
    axes.set_yticks(range(len(TASKS)), [_label(task) for task in TASKS])
    axes.set(title="Confusion", xlabel="verdict", ylabel="label")
    for row, column in np.ndindex(*shares.shape):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=color)
    return _svg(figure)


def _reliability_plot(judged: Judged) -> str:
    figure, axes = _figure()
    bins = reliability(judged)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.plot([confidence for confidence, _, _ in bins], [share for _, share, _ in bins], marker="o")
    axes.set(title="Reliability", xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    return _svg(figure)


def _coverage_plot(judged: Judged) -> str:
    figure, axes = _figure()
    confidence, is_right = subject_confidence(judged)
    order = np.argsort(-confidence, kind="stable")
    kept = np.arange(1, len(order) + 1)
    axes.plot(kept / max(len(order), 1), np.cumsum(is_right[order]) / kept)
    axes.set(
        title="Accuracy of the most confident", xlabel="coverage of in-scope rows", ylabel="share right", xlim=(0, 1)
    )
    axes.grid(visible=True, alpha=0.3)
    return _svg(figure)
