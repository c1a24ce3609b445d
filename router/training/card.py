"""The model card that goes with a classifier file."""

from collections import Counter
from collections.abc import Mapping, Sequence

from router.tasks import TASKS
from router.training.corpus import Row
from router.training.measure import Figures, Judged, confusion, coverage_accuracy, figures, source_accuracy

_INTRODUCTION = """# The task classifier

Written by `fenhe router train`; do not edit. A linear model over hashed character n-grams (1 to 4), words and pairs of
words of a request, int8, run by numpy. It answers one of math, legal, fact, creative and general (none of these, or
unsure) with calibrated probabilities, for English and Chinese.
"""

_WEAK_SPOTS = """## Known weak spots

- It reads words, not meaning: a request in one task's words about another's matter goes wrong, as do riddles of style
  (trivia said as a statement, bar-exam stories before the legal question, role-play that asks for an explanation).
- Other languages than English and Chinese: anything may come out, also with confidence.
- Editing, summarising and classifying a given text is often taken for the text's own subject (a third of BELLE's cases
  and half of self-instruct's), the more so the longer the text.
- Very short turns ("hello!", "who are you?") were added last; one-word turns remain a guess.
- Of a text beyond 960 characters only the beginning and the end are read.
- The written prompts were written by language models for this project in three rounds, with the errors on the sources
  below known from the second round on. The sources' texts were not copied, but some written prompts name the same kinds
  of matter (CLINC150's intents, PolicyQA's questions), so the figures on sources left out are somewhat too good.
"""


def write_card(unseen: Judged, training: Sequence[Row], tested: Mapping[str, Figures], digest: str) -> str:
    """Markdown: `unseen` are the real rows, judged with their data set left out; `tested` other files' figures."""
    parts = [
        _INTRODUCTION,
        f"Trained on rows with SHA-256 `{digest}`.\n",
        "## Figures with whole data sets left out\n",
        "Every data set is judged by a model that saw nothing of it; calibration and thresholds are from these rows.\n",
        _figure_table({"left out": figures(unseen), **tested}),
        "## Coverage\n",
        _coverage_table(unseen),
        "## Confusion (rows: label, columns: verdict)\n",
        _confusion_table(unseen),
        "## Sources and licences, and how each was judged when left out\n",
        _source_table(unseen, training),
        _WEAK_SPOTS,
    ]
    return "\n".join(parts)


def _figure_table(columns: Mapping[str, Figures]) -> str:
    names = list(next(iter(columns.values())))
    header = ["figure", *columns]
    rows = [[name, *(_number(column.get(name)) for column in columns.values())] for name in names]
    return _table(header, rows)


def _coverage_table(unseen: Judged) -> str:
    shares = (1.0, 0.95, 0.9, 0.8, 0.7)
    rows = [[f"{share:.0%}", _number(coverage_accuracy(unseen, share))] for share in shares]
    return _table(["coverage of in-scope rows", "accuracy"], rows)


def _confusion_table(unseen: Judged) -> str:
    counts = confusion(unseen).tolist()
    return _table(["", *TASKS], [[task, *map(str, row)] for task, row in zip(TASKS, counts, strict=True)])


def _source_table(unseen: Judged, training: Sequence[Row]) -> str:
    licences = {row.source: row.licence for row in training}
    rows = [
        [lang, label, source, licences.get(source, "unknown"), str(size), f"{accuracy:.3f}"]
        for (lang, label, source), (accuracy, size) in source_accuracy(unseen).items()
    ]
    written = Counter((row.lang, row.label) for row in training if row.is_written)
    rows += [
        [lang, label, "written for fenhe", "Apache-2.0", str(size), ""]
        for (lang, label), size in sorted(written.items())
    ]
    return _table(["language", "label", "source", "licence", "rows", "right when left out"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
