"""Whole texts through the paths of a student: how every position of the answer predicts the reference token.

Every module runs once per text for all paths that share its input, and the head for many positions at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.evaluation.tree import make_tree
from engines.onnx.runner import OnnxRunner
from models.evaluation.rows import Passage
from models.evaluation.scores import RowScore
from models.student.folder import HEAD
from models.student.manifest import Manifest

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

HEAD_ROWS = 64
"""Rows of one head pass: enough to be fast, few enough that their logits stay in the cache."""


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
        taken = self.logits[list(rows), list(token_ids)].astype(np.float64)
        return self.log_total[list(rows)] - taken


def distribution_of(logits: Float) -> Distribution:
    """Shapes: logits [positions, vocab]."""
    likeliest = logits.argmax(axis=1)
    highest = np.take_along_axis(logits, likeliest[:, None], axis=1)
    shares = np.exp(logits - highest)
    totals = shares.sum(axis=1, keepdims=True)
    shares /= totals
    return Distribution(logits=logits, likeliest=likeliest, log_total=(highest + np.log(totals))[:, 0], shares=shares)


def kl_from(reference: Distribution, other: Distribution) -> Double:
    """KL(reference || other) of every position. Units: nats. Shapes: returns [positions]."""
    differences = reference.logits - other.logits
    crossed = np.einsum("pv,pv->p", reference.shares, differences).astype(np.float64)
    return np.asarray(crossed - reference.log_total + other.log_total)


class PathRuns:
    """Some paths of a loaded runner, run side by side over one sequence."""

    def __init__(self, runner: OnnxRunner, manifest: Manifest, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._runner = runner
        self._tree = make_tree(manifest, paths)
        self._kvless = {exit.name for exit in manifest.exits if not exit.num_blocks}

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
            outputs.append(self._runner.run_stage(run.stage, hidden, slot=run.slot, start=start))
        found = {}
        for path, index in self._tree.exits.items():
            is_cut = self._tree.runs[index].stage in self._kvless
            found[path] = outputs[index][0] if is_cut else outputs[index][0, first:]
        return found

    def distributions(self, normed: Sequence[Float]) -> list[Distribution]:
        """One head pass for the normed states of several paths at the same positions.

        Shapes: every one of normed [positions, hidden_size].
        """
        logits = self._runner.run_head(np.concatenate(normed))
        return [distribution_of(part) for part in np.split(logits, len(normed))]


@dataclass(slots=True)
class _Tally:
    """The running sums of one path over one passage."""

    nats: list[float]
    kl: float = 0.0
    num_agreed: int = 0
    first_nats: tuple[float, ...] = ()
    """Of the first token of every branch."""


class Scorer:
    """Scores passages on paths against the full path of a reference.

    `reference` None: the reference is the full path of these very runs, which `paths` must then have.
    """

    def __init__(self, runs: PathRuns, full_path: str, reference: PathRuns | None = None) -> None:
        self._runs = runs
        self._full_path = full_path
        self._reference = reference
        self._step = max(1, HEAD_ROWS // len(runs.paths))

    def score(self, passage: Passage) -> dict[str, RowScore]:
        """The scores of every path on the passage."""
        first = passage.boundary - 1  # the position that predicts the answer's first token
        ids = passage.token_ids[:-1]
        normed = self._runs.normed(ids, first=first)
        reference = self._reference.normed(ids, first=first)[self._full_path] if self._reference else None
        tallies = {path: _Tally([]) for path in self._runs.paths}
        for begin in range(0, passage.num_answer_tokens, self._step):
            self._score_positions(passage, begin, normed, reference, tallies)
        branches = self._branch_nats(passage, tallies)
        blind = self._blind_nats(passage)
        return {
            path: RowScore(
                dataset=passage.dataset,
                task=passage.task,
                num_tokens=passage.num_answer_tokens,
                nats=float(sum(tally.nats)),
                kl=tally.kl,
                num_agreed=tally.num_agreed,
                choice_nats=_choice_nats(passage, tally, branches[path]),
                blind_nats=blind.get(path),
            )
            for path, tally in tallies.items()
        }

    def _score_positions(
        self,
        passage: Passage,
        begin: int,
        normed: dict[str, Float],
        reference: Float | None,
        tallies: dict[str, _Tally],
    ) -> None:
        end = min(begin + self._step, passage.num_answer_tokens)
        targets = passage.token_ids[passage.boundary + begin : passage.boundary + end]
        found = self._runs.distributions([states[begin:end] for states in normed.values()])
        by_path = dict(zip(normed, found, strict=True))
        if self._reference is None or reference is None:
            base = by_path[self._full_path]
        else:
            base = self._reference.distributions([reference[begin:end]])[0]
        branch_at = passage.branch - passage.boundary
        for path, tally in tallies.items():
            here = by_path[path]
            tally.nats += here.nats(range(end - begin), targets).tolist()
            tally.kl += float(kl_from(base, here).sum())
            tally.num_agreed += int((here.likeliest == base.likeliest).sum())
            if passage.branches and begin <= branch_at < end:
                firsts = [branch[0] for branch in passage.branches]
                tally.first_nats = tuple(here.nats([branch_at - begin] * len(firsts), firsts).tolist())

    def _branch_nats(self, passage: Passage, tallies: dict[str, _Tally]) -> dict[str, list[float]]:
        """Summed nats of every branch. The passage's KV up to the branch is reused; KV after it is overwritten."""
        totals = {path: list(tally.first_nats) for path, tally in tallies.items()}
        for index, branch in enumerate(passage.branches):
            if len(branch) > 1:
                normed = self._runs.normed(branch[:-1], start=passage.branch)
                for path, nats in self._nats_of(normed, branch[1:]).items():
                    totals[path][index] += nats
        return totals

    def _blind_nats(self, passage: Passage) -> dict[str, float]:
        """Summed nats of the answer after another row's question, over the passage's KV; empty without one."""
        question = passage.other_question
        if not question:
            return {}
        normed = self._runs.normed((*question, *passage.answer[:-1]), first=len(question) - 1)
        return self._nats_of(normed, passage.answer)

    def _nats_of(self, normed: dict[str, Float], targets: Sequence[int]) -> dict[str, float]:
        """Summed nats of the targets, each predicted by one state."""
        totals = dict.fromkeys(normed, 0.0)
        for begin in range(0, len(targets), self._step):
            part = targets[begin : begin + self._step]
            found = self._runs.distributions([states[begin : begin + self._step] for states in normed.values()])
            for path, here in zip(normed, found, strict=True):
                totals[path] += float(here.nats(range(len(part)), part).sum())
        return totals


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
