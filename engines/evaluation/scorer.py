"""Whole texts through the paths of a student: how every position predicts the next token.

Every module runs once per text for all paths that share its input, and every head on the same states of all paths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engines.evaluation.tree import make_tree
from models.evaluation.rows import Passage
from models.evaluation.scores import PathHead, RowScore
from models.student.folder import HEAD
from models.student.manifest import HeadKind, Manifest

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

HEAD_ROWS = 64
"""Rows of one head pass: enough to be fast, few enough that their logits stay in the cache."""
EXACT_ONLY: tuple[HeadKind, ...] = ("exact",)


class StageRunner(Protocol):
    """What scoring needs of a loaded runner: see `OnnxRunner`."""

    def embed(self, token_ids: Sequence[int]) -> Float: ...

    def run_stage(self, stage: str, hidden: Float, *, slot: int, start: int, width: str = "") -> Float: ...

    def run_head(self, normed: Float, head: HeadKind = "exact") -> Float: ...


@dataclass(slots=True, kw_only=True, frozen=True)
class Distribution:
    """Next-token distributions of some positions. Shapes: logits [positions, vocab], the rest [positions]."""

    logits: Float
    likeliest: Indices
    log_total: Float
    shares: Float
    """Probabilities. Shapes: [positions, vocab]."""

    def nats(self, rows: Sequence[int] | Indices, token_ids: Sequence[int]) -> Double:
        """Negative log-likelihood of one token at each of the rows. Shapes: rows, token_ids and result [rows]."""
        return nats_from(self.logits, self.log_total, rows, token_ids)


def distribution_of(logits: Float) -> Distribution:
    """Shapes: logits [positions, vocab]."""
    likeliest = logits.argmax(axis=1)
    highest = np.take_along_axis(logits, likeliest[:, None], axis=1)
    shares = np.exp(logits - highest)
    totals = shares.sum(axis=1, keepdims=True)
    shares /= totals
    return Distribution(logits=logits, likeliest=likeliest, log_total=(highest + np.log(totals))[:, 0], shares=shares)


def log_totals(logits: Float) -> Float:
    """What `Distribution.log_total` is, without the rest. Shapes: logits [positions, vocab], returns [positions]."""
    likeliest = logits.argmax(axis=1)
    highest = np.take_along_axis(logits, likeliest[:, None], axis=1)
    powers = np.subtract(logits, highest)
    np.exp(powers, out=powers)
    totals: Float = (highest + np.log(powers.sum(axis=1, keepdims=True)))[:, 0]
    return totals


def nats_from(logits: Float, log_total: Float, rows: Sequence[int] | Indices, token_ids: Sequence[int]) -> Double:
    """Negative log-likelihood of one token at each of the rows. Shapes: rows, token_ids and result [rows]."""
    taken = logits[list(rows), list(token_ids)].astype(np.float64)
    return np.asarray(log_total[list(rows)] - taken)


def kl_from(reference: Distribution, other: Distribution) -> Double:
    """KL(reference || other) of every position. Units: nats. Shapes: returns [positions]."""
    differences = reference.logits - other.logits
    crossed = np.einsum("pv,pv->p", reference.shares, differences).astype(np.float64)
    return np.asarray(crossed - reference.log_total + other.log_total)


def columns_of(paths: Sequence[str], heads: Sequence[HeadKind]) -> tuple[PathHead, ...]:
    """Every path with every head."""
    return tuple(PathHead(path, head) for head in heads for path in paths)


class PathRuns:
    """Some paths of a loaded runner, run side by side over one sequence, each with every one of the heads."""

    def __init__(
        self,
        runner: StageRunner,
        manifest: Manifest,
        paths: Sequence[str],
        heads: Sequence[HeadKind] = EXACT_ONLY,
    ) -> None:
        self.paths = tuple(paths)
        self.heads = tuple(heads)
        self._runner = runner
        self._tree = make_tree(manifest, paths)
        self._kvless = {exit.name for exit in manifest.exits if not exit.num_blocks}

    @property
    def columns(self) -> tuple[PathHead, ...]:
        """Every path with every head."""
        return columns_of(self.paths, self.heads)

    def normed(self, token_ids: Sequence[int], *, start: int = 0, first: int = 0) -> dict[str, Float]:
        """Every path's normed states from token `first` of these on; positions before `start` have been run already.

        Shapes: [tokens - first, hidden_size].
        """
        outputs: list[Float] = []
        embedded = self._runner.embed(token_ids)
        for run in self._tree.runs:
            hidden = embedded if run.parent is None else outputs[run.parent]
            if run.stage in self._kvless:
                hidden = np.ascontiguousarray(hidden[:, first:])
            outputs.append(self._runner.run_stage(run.stage, hidden, slot=run.slot, start=start, width=run.width))
        found = {}
        for path, index in self._tree.exits.items():
            is_cut = self._tree.runs[index].stage in self._kvless
            found[path] = outputs[index][0] if is_cut else outputs[index][0, first:]
        return found

    def logits(self, normed: Mapping[str, Float]) -> dict[PathHead, Float]:
        """One pass of every head for the normed states of all paths at the same positions.

        Shapes: every one of normed [positions, hidden_size], of the result [positions, vocab].
        """
        together = np.concatenate(list(normed.values()))
        found: dict[PathHead, Float] = {}
        for head in self.heads:
            parts = np.split(self._runner.run_head(together, head), len(normed))
            found |= {PathHead(path, head): part for path, part in zip(normed, parts, strict=True)}
        return found

    def distributions(self, normed: Mapping[str, Float]) -> dict[PathHead, Distribution]:
        """What `logits` gives, as distributions."""
        return {column: distribution_of(logits) for column, logits in self.logits(normed).items()}


@dataclass(slots=True)
class _Tally:
    """The running sums of one path with one head over one passage."""

    nats: list[float]
    kl: float = 0.0
    num_agreed: int = 0
    full_kl: float = 0.0
    num_full_agreed: int = 0
    first_nats: tuple[float, ...] = ()
    """Of the first token of every branch."""

    def compare(self, here: Distribution, reference: Distribution, full: Distribution) -> None:
        kl, num_agreed = _compared(here, reference)
        self.kl += kl
        self.num_agreed += num_agreed
        full_kl, num_full_agreed = (kl, num_agreed) if full is reference else _compared(here, full)
        self.full_kl += full_kl
        self.num_full_agreed += num_full_agreed


def _compared(here: Distribution, base: Distribution) -> tuple[float, int]:
    return float(kl_from(base, here).sum()), int((here.likeliest == base.likeliest).sum())


class Scorer:
    """Scores texts on paths against the full path with the exact head: that of a reference, and that of these runs.

    `reference` None: the reference is the full path of these very runs, which `paths` must then have.
    """

    def __init__(self, runs: PathRuns, full_path: str, reference: PathRuns | None = None) -> None:
        self._runs = runs
        self._full = PathHead(full_path, "exact")
        self._reference = reference
        self._step = max(1, HEAD_ROWS // len(runs.paths))
        self._question: tuple[int, ...] = ()
        self._question_states: dict[str, Float] = {}

    def score(self, passage: Passage, *, is_compared: bool = True) -> dict[PathHead, RowScore]:
        """The scores of every path and head on the passage. `is_compared`: whether predictions are compared with the
        full path's over the whole vocabulary, which costs about as much as the heads."""
        first = passage.boundary - 1  # the position that predicts the answer's first token
        ids = passage.token_ids[:-1]
        normed = self._runs.normed(ids, first=first)
        self._question, self._question_states = passage.question, _cut(normed, 0, 1)
        reference = None
        if is_compared and self._reference is not None:
            reference = self._reference.normed(ids, first=first)
        tallies = {column: _Tally([]) for column in self._runs.columns}
        for begin in range(0, passage.num_answer_tokens, self._step):
            end = min(begin + self._step, passage.num_answer_tokens)
            here = _cut(normed, begin, end)
            if is_compared:
                self._compare(passage, begin, here, None if reference is None else _cut(reference, begin, end), tallies)
            else:
                for column, logits in self._runs.logits(here).items():
                    _add_nats(tallies[column], passage, begin, logits, log_totals(logits))
        branches = self._branch_nats(passage, tallies)
        blind = self._blind_nats(passage)
        return {
            column: RowScore(
                dataset=passage.dataset,
                task=passage.task,
                num_tokens=passage.num_answer_tokens,
                nats=float(sum(tally.nats)),
                kl=tally.kl if is_compared else None,
                num_agreed=tally.num_agreed if is_compared else None,
                full_kl=tally.full_kl if is_compared else None,
                num_full_agreed=tally.num_full_agreed if is_compared else None,
                choice_nats=_choice_nats(passage, tally, branches[column]),
                blind_nats=blind.get(column),
            )
            for column, tally in tallies.items()
        }

    def answer_nats(self, answer: Sequence[int]) -> dict[PathHead, float]:
        """Summed nats of another answer to the question of the passage that was scored last, whose KV is still there;
        that passage had no other question."""
        totals = self._nats_of(self._question_states, answer[:1])
        if len(answer) > 1:
            normed = self._runs.normed(answer[:-1], start=len(self._question))
            for column, nats in self._nats_of(normed, answer[1:]).items():
                totals[column] += nats
        return totals

    def text_nats(self, token_ids: Sequence[int], first: int = 1) -> dict[PathHead, float]:
        """Summed nats of the tokens from `first` on, each predicted by all before it."""
        normed = self._runs.normed(token_ids[:-1], first=first - 1)
        return self._nats_of(normed, token_ids[first:])

    def _compare(
        self,
        passage: Passage,
        begin: int,
        normed: Mapping[str, Float],
        reference: Mapping[str, Float] | None,
        tallies: dict[PathHead, _Tally],
    ) -> None:
        found = self._runs.distributions(normed)
        base = None
        if self._reference is not None and reference is not None:
            base = self._reference.distributions(reference)[self._full]
        full = found.get(self._full, base)
        assert full is not None, "neither these runs nor the reference have the full path"
        for column, tally in tallies.items():
            here = found[column]
            _add_nats(tally, passage, begin, here.logits, here.log_total)
            tally.compare(here, full if base is None else base, full)

    def _branch_nats(self, passage: Passage, tallies: dict[PathHead, _Tally]) -> dict[PathHead, list[float]]:
        """Summed nats of every branch. The passage's KV up to the branch is reused; KV after it is overwritten."""
        totals = {column: list(tally.first_nats) for column, tally in tallies.items()}
        for index, branch in enumerate(passage.branches):
            if len(branch) > 1:
                normed = self._runs.normed(branch[:-1], start=passage.branch)
                for column, nats in self._nats_of(normed, branch[1:]).items():
                    totals[column][index] += nats
        return totals

    def _blind_nats(self, passage: Passage) -> dict[PathHead, float]:
        """Summed nats of the answer after another row's question, over the passage's KV; empty without one."""
        question = passage.other_question
        if not question:
            return {}
        return self.text_nats((*question, *passage.answer), first=len(question))

    def _nats_of(self, normed: Mapping[str, Float], targets: Sequence[int]) -> dict[PathHead, float]:
        """Summed nats of the targets, each predicted by one state."""
        totals = dict.fromkeys(self._runs.columns, 0.0)
        for begin in range(0, len(targets), self._step):
            part = targets[begin : begin + self._step]
            for column, logits in self._runs.logits(_cut(normed, begin, begin + self._step)).items():
                totals[column] += float(nats_from(logits, log_totals(logits), range(len(part)), part).sum())
        return totals


def _cut(normed: Mapping[str, Float], begin: int, end: int) -> dict[str, Float]:
    return {path: states[begin:end] for path, states in normed.items()}


def _add_nats(tally: _Tally, passage: Passage, begin: int, logits: Float, log_total: Float) -> None:
    """Of the answer's tokens from `begin` on, and of the first tokens of branches that leave the text there."""
    targets = passage.answer[begin : begin + len(logits)]
    tally.nats += nats_from(logits, log_total, range(len(targets)), targets).tolist()
    row = passage.branch - passage.boundary - begin
    if passage.branches and 0 <= row < len(targets):
        firsts = [branch[0] for branch in passage.branches]
        tally.first_nats = tuple(nats_from(logits, log_total, [row] * len(firsts), firsts).tolist())


def _choice_nats(passage: Passage, tally: _Tally, branches: Sequence[float]) -> tuple[float, ...]:
    """Mean nats per token of the reference answer's own end, then of every branch."""
    if not passage.branches:
        return ()
    own = tally.nats[passage.branch - passage.boundary : passage.branch_end - passage.boundary]
    wrong = (nats / len(branch) for nats, branch in zip(branches, passage.branches, strict=True))
    return (sum(own) / len(own), *wrong)


def stages_of(manifest: Manifest, paths: Sequence[str]) -> tuple[str, ...]:
    """Every stage that scoring these paths loads, the head included."""
    return (*make_tree(manifest, paths).stages, HEAD)
