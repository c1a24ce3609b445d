"""All texts through the paths of one precision, and their own answers through the full path."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tqdm import tqdm

from engines.evaluation.scorer import PathRuns, Scorer
from engines.evaluation.writing import Written, written_passage
from models.evaluation.blind import with_other_questions
from models.evaluation.rows import OWN_WORDS, Passage, Row, passage_of
from models.evaluation.scores import AnswerScore, PairScore, PathHead, RowScore, Scores, TextScore, repeated_ngrams
from models.evaluation.texts import Pair, PlainText, plain_ids, spread
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

    def taken(self, part: "Part") -> "EncodedTexts":
        """The texts of a part."""
        return EncodedTexts(
            passages=tuple(self.passages[index] for index in part.rows),
            plain=tuple(self.plain[index] for index in part.plain),
            pairs=tuple(self.pairs[index] for index in part.pairs),
            num_skipped=self.num_skipped,
        )

    def part(self, num_texts: int, num_pairs: int) -> "Part":
        """At most so many texts of every task and dataset, and so many pairs, evenly spaced."""
        rows: dict[tuple[str, str], list[int]] = {}
        for index, passage in enumerate(self.passages):
            rows.setdefault((passage.task, passage.dataset), []).append(index)
        plain: dict[str, list[int]] = {}
        for index, (task, _) in enumerate(self.plain):
            plain.setdefault(task, []).append(index)
        return Part(
            rows=tuple(index for group in rows.values() for index in spread(group, num_texts)),
            plain=tuple(index for group in plain.values() for index in spread(group, num_texts)),
            pairs=tuple(spread(range(len(self.pairs)), num_pairs)),
        )

    @property
    def tasks_with_own_words(self) -> frozenset[str]:
        return frozenset(passage.task for passage in self.passages if passage.dataset == OWN_WORDS)


@dataclass(slots=True, kw_only=True, frozen=True)
class Part:
    """Some of the texts, by their places."""

    rows: tuple[int, ...]
    plain: tuple[int, ...]
    pairs: tuple[int, ...]

    def scores(self, scores: Scores) -> Scores:
        """The scores of these texts, out of those of all."""
        return Scores(
            rows=[scores.rows[index] for index in self.rows],
            plain=[scores.plain[index] for index in self.plain],
            pairs=[scores.pairs[index] for index in self.pairs],
        )


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
    for by_column in _row_scores(scorer, texts, shown):
        for column, score in by_column.items():
            scores[column].rows.append(score)
    for task, ids in shown(texts.plain, "text"):
        for column, nats in scorer.text_nats(ids).items():
            scores[column].plain.append(TextScore(dataset=PLAIN, task=task, num_tokens=len(ids) - 1, nats=nats))
    for good, bad in shown(texts.pairs, "pair"):
        good_nats, bad_nats = scorer.text_nats(good), scorer.text_nats(bad)
        for column, held in scores.items():
            held.pairs.append(PairScore(good_nats=good_nats[column], bad_nats=bad_nats[column]))
    return scores


def _row_scores(scorer: Scorer, texts: EncodedTexts, shown: "Shown") -> list[dict[PathHead, RowScore]]:
    """Of every passage in order. An answer behind another row's question is scored when that question has been read."""
    own = texts.tasks_with_own_words
    waiting: dict[tuple[str, str, Ids], list[int]] = {}
    for index, passage in enumerate(texts.passages):
        if passage.other_question:
            waiting.setdefault((passage.task, passage.dataset, passage.other_question), []).append(index)
    found: list[dict[PathHead, RowScore]] = []
    blind: dict[int, dict[PathHead, float]] = {}
    for passage in shown(texts.passages, "row"):
        is_compared = passage.dataset == OWN_WORDS or passage.task not in own
        by_column = scorer.score(replace(passage, other_question=()), is_compared=is_compared)
        answers = waiting.pop((passage.task, passage.dataset, passage.question), ())
        blind |= {index: scorer.answer_nats(texts.passages[index].answer) for index in answers}
        found.append(_with_rewordings(scorer, passage, by_column))
    for (_, _, question), indices in waiting.items():  # of rows that are not among these
        for index in indices:
            blind[index] = scorer.text_nats((*question, *texts.passages[index].answer), first=len(question))
    return [
        {column: replace(score, blind_nats=blind[index][column]) for column, score in by_column.items()}
        if index in blind
        else by_column
        for index, by_column in enumerate(found)
    ]


def _with_rewordings(scorer: Scorer, passage: Passage, by_column: dict[PathHead, RowScore]) -> dict[PathHead, RowScore]:
    reworded = [scorer.score(rewording, is_compared=False) for rewording in passage.rewordings]
    return {
        column: replace(score, reworded_choice_nats=tuple(scores[column].choice_nats for scores in reworded))
        for column, score in by_column.items()
    }


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
