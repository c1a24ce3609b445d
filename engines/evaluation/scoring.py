"""All texts through the paths of one precision, and their own answers through the full path."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from engines.evaluation.scorer import PathRuns, Scorer
from engines.evaluation.writing import Written, written_passage
from models.evaluation.blind import with_other_questions
from models.evaluation.rows import OWN_WORDS, Passage, Row, passage_of
from models.evaluation.scores import AnswerScore, PairScore, PathHead, Scores, TextScore, repeated_ngrams
from models.evaluation.texts import Pair, PlainText, plain_ids
from models.tokenizer import Tokenizer

PLAIN = "plain"
"""The dataset of all human text without a prompt."""
MIN_TEXT_TOKENS = 2
"""One to begin with and one to predict."""

T = TypeVar("T")
Ids = tuple[int, ...]


@dataclass(slots=True, kw_only=True, frozen=True)
class EncodedTexts:
    """Texts in tokens. `plain` are (task, ids), `pairs` are the ids of the right and of the wrong sentence."""

    passages: tuple[Passage, ...]
    plain: tuple[tuple[str, Ids], ...]
    pairs: tuple[tuple[Ids, Ids], ...]
    num_skipped: int

    def every(self, step: int) -> "EncodedTexts":
        """Every so many of them, from the first one on."""
        return EncodedTexts(
            passages=self.passages[::step],
            plain=self.plain[::step],
            pairs=self.pairs[::step],
            num_skipped=self.num_skipped,
        )

    @property
    def tasks_with_own_words(self) -> frozenset[str]:
        return frozenset(passage.task for passage in self.passages if passage.dataset == OWN_WORDS)


def encoded(
    rows: Sequence[Row], plain: Sequence[PlainText], pairs: Sequence[Pair], tokenizer: Tokenizer, max_tokens: int
) -> EncodedTexts:
    """What fits into `max_tokens`, as the model reads it."""
    passages = [passage_of(row, tokenizer, max_tokens) for row in rows]
    fitting = with_other_questions([passage for passage in passages if passage is not None], max_tokens)
    texts = [(text.task, plain_ids(text.text, tokenizer, max_tokens)) for text in plain]
    long_texts = tuple((task, ids) for task, ids in texts if len(ids) >= MIN_TEXT_TOKENS)
    return EncodedTexts(
        passages=tuple(fitting),
        plain=long_texts,
        pairs=tuple(
            (plain_ids(pair.good, tokenizer, max_tokens), plain_ids(pair.bad, tokenizer, max_tokens)) for pair in pairs
        ),
        num_skipped=passages.count(None) + len(texts) - len(long_texts),
    )


def score_texts(
    runs: PathRuns, full_path: str, texts: EncodedTexts, reference: PathRuns | None, shown: "Shown"
) -> dict[PathHead, Scores]:
    """The scores of every path and head. Predictions are compared over the whole vocabulary on the full path's own
    words, and on all answers of tasks without such."""
    scorer = Scorer(runs, full_path, reference)
    scores = {column: Scores() for column in runs.columns}
    own = texts.tasks_with_own_words
    for passage in shown(texts.passages, "row"):
        is_compared = passage.dataset == OWN_WORDS or passage.task not in own
        for column, score in scorer.score(passage, is_compared=is_compared).items():
            scores[column].rows.append(score)
    for task, ids in shown(texts.plain, "text"):
        for column, nats in scorer.text_nats(ids).items():
            scores[column].plain.append(TextScore(dataset=PLAIN, task=task, num_tokens=len(ids) - 1, nats=nats))
    for good, bad in shown(texts.pairs, "pair"):
        good_nats, bad_nats = scorer.text_nats(good), scorer.text_nats(bad)
        for column, held in scores.items():
            held.pairs.append(PairScore(good_nats=good_nats[column], bad_nats=bad_nats[column]))
    return scores


def score_answers(
    full: PathRuns,
    written: Mapping[PathHead, Sequence[Written]],
    tokenizer: Tokenizer,
    max_tokens: int,
    shown: "Shown",
) -> dict[PathHead, list[AnswerScore]]:
    """Answers as the full path, the only one of `full`, finds them with the exact head."""
    scorer = Scorer(full, full.paths[0])
    found: dict[PathHead, list[AnswerScore]] = {}
    for column, answers in written.items():
        passages = [(one, written_passage(one, tokenizer, max_tokens)) for one in answers]
        found[column] = [
            _answer_score(scorer, one, passage)
            for one, passage in shown(passages, f"answer of {column.path}")
            if passage is not None
        ]
    return found


def _answer_score(scorer: Scorer, written: Written, passage: Passage) -> AnswerScore:
    (nats,) = scorer.text_nats(passage.token_ids, first=passage.boundary).values()
    num_ngrams, num_repeated = repeated_ngrams(passage.answer)
    return AnswerScore(
        task=written.task,
        prompt=written.prompt,
        num_tokens=passage.num_answer_tokens,
        nats=nats,
        num_ngrams=num_ngrams,
        num_repeated=num_repeated,
    )


class Shown:
    """Wraps what is worked through into progress reports on stderr, `every_s` apart; None: no reports."""

    def __init__(self, precision: str, every_s: float | None) -> None:
        self._precision = precision
        self._every_s = every_s

    def __call__(self, items: Sequence[T], unit: str) -> Iterable[T]:
        if self._every_s is None or not items:
            return items
        return tqdm(items, desc=self._precision, unit=unit, mininterval=self._every_s)
