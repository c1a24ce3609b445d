"""Exits compared with full depth on held-out rows, in torch and over the whole vocabulary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import TypeVar

import torch
from torch import Tensor

from models.distill.data.examples import Example, encode_rows
from models.distill.data.rows import Row
from models.distill.network.decoder import Trunk, padded
from models.distill.network.exit_model import ExitModel
from models.distill.network.narrow_model import NarrowModel
from models.tokenizer import Tokenizer

HEAD_TOKENS = 512

T = TypeVar("T", Row, Example)


@dataclass(slots=True, kw_only=True, frozen=True)
class HeldOutFigure:
    """One exit on one task's answers. Units: nats per token, where not a share.

    `kl` is of the full depth against the exit, `cross_entropy` and `full_cross_entropy` of the reference answers.
    """

    exit: str
    task: str
    num_tokens: int
    kl: float
    agreement: float
    cross_entropy: float
    full_cross_entropy: float

    @property
    def perplexity_ratio(self) -> float:
        return exp(self.cross_entropy - self.full_cross_entropy)


@torch.no_grad()
def score_held_out(
    trunk: Trunk, exits: Sequence[ExitModel], rows: Sequence[Row], tokenizer: Tokenizer, max_tokens: int, max_rows: int
) -> list[HeldOutFigure]:
    """Score every exit on the answers of the first `max_rows` rows of every task."""
    examples, _ = encode_rows(
        first_of_each_task((row for row in rows if row.answer is not None), max_rows), tokenizer, max_tokens
    )
    sums: dict[tuple[str, str], Tensor] = {}
    for example in examples:
        for name, measured in _score(trunk, exits, example):
            key = (name, example.task)
            sums[key] = sums.get(key, torch.zeros(5, dtype=torch.float64)) + measured
    return [_figure(exit, task, total) for (exit, task), total in sorted(sums.items())]


@torch.no_grad()
def score_widths(model: NarrowModel, widths: Sequence[str], examples: Sequence[Example]) -> list[HeldOutFigure]:
    """Score every width on the answers of examples; `exit` of a figure is the width's name."""
    trunk = model.trunk
    sums: dict[tuple[str, str], Tensor] = {}
    for example in examples:
        first = max(example.num_prompt_tokens - 1, 0)
        ids_BT = padded([example.token_ids])[0].to(trunk.device)
        full_BTH = trunk.norm(trunk.run(trunk.embed(ids_BT), range(trunk.architecture.num_layers)))
        target_T = torch.tensor(example.token_ids[first + 1 :], device=trunk.device)
        for width in widths:
            measured = _compare(trunk, model(ids_BT, width)[0, first:-1], full_BTH[0, first:-1], target_T)
            key = (width, example.task)
            sums[key] = sums.get(key, torch.zeros(5, dtype=torch.float64)) + measured
    return [_figure(width, task, total) for (width, task), total in sorted(sums.items())]


def first_of_each_task(items: Iterable[T], most: int) -> list[T]:
    """At most so many items of every task, those that come first, in their order."""
    taken: dict[str, int] = {}
    chosen = []
    for item in items:
        if taken.get(item.task, 0) < most:
            taken[item.task] = taken.get(item.task, 0) + 1
            chosen.append(item)
    return chosen


def _score(trunk: Trunk, exits: Sequence[ExitModel], example: Example) -> list[tuple[str, Tensor]]:
    """Sums over the answer: tokens, KL, agreements, cross-entropy of the exit and of the full depth."""
    first = max(example.num_prompt_tokens - 1, 0)
    ids_BT, _ = padded([example.token_ids])
    hidden_BTH, depth = trunk.embed(ids_BT.to(trunk.device)), 0
    normed: dict[str, Tensor] = {}
    for exit in sorted(exits, key=lambda exit: exit.depth):
        hidden_BTH, depth = trunk.run(hidden_BTH, range(depth, exit.depth)), exit.depth
        with torch.autocast(trunk.device.type, torch.bfloat16, enabled=trunk.dtype is torch.bfloat16):
            normed[exit.name] = exit(hidden_BTH)[0, first:-1].to(trunk.dtype)
    full_TH = trunk.norm(trunk.run(hidden_BTH, range(depth, trunk.architecture.num_layers)))[0, first:-1]
    target_T = torch.tensor(example.token_ids[first + 1 :], device=trunk.device)
    return [(name, _compare(trunk, normed_TH, full_TH, target_T)) for name, normed_TH in normed.items()]


def _compare(trunk: Trunk, normed_TH: Tensor, full_TH: Tensor, target_T: Tensor) -> Tensor:
    total = torch.zeros(5, dtype=torch.float64)
    parts = (torch.split(tensor, HEAD_TOKENS) for tensor in (normed_TH, full_TH, target_T))
    for normed, full, target in zip(*parts, strict=True):
        log_q, log_p = (trunk.logits(state).float().log_softmax(dim=-1) for state in (normed, full))
        agreed = (log_q.argmax(dim=-1) == log_p.argmax(dim=-1)).sum()
        kl = (log_p.exp() * (log_p - log_q)).sum()
        losses = [-log.gather(1, target[:, None]).sum() for log in (log_q, log_p)]
        total += torch.stack(
            [torch.tensor(float(len(target))), kl.cpu(), agreed.cpu(), *(loss.cpu() for loss in losses)]
        )
    return total


def _figure(exit: str, task: str, total: Tensor) -> HeldOutFigure:
    num_tokens, kl, agreed, loss, full_loss = (float(value) for value in total)
    return HeldOutFigure(
        exit=exit,
        task=task,
        num_tokens=int(num_tokens),
        kl=kl / num_tokens,
        agreement=agreed / num_tokens,
        cross_entropy=loss / num_tokens,
        full_cross_entropy=full_loss / num_tokens,
    )
