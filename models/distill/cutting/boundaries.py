"""Where to cut a teacher into modules, by what its layers do to the states and where their attention looks.

Tensor names carry shapes: T tokens of one text, Q those of them whose attention counts, L layers, S = L + 1 states
(the embedding, then every layer's output), H hidden, N heads.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from statistics import fmean, median

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from models.distill.network.decoder import Trunk
from models.errors import ConfigError, WeightsError
from models.student.cut import DEFAULT_SHARES
from models.student.manifest import Module, Record

LOCAL_TOKENS = 8
"""A token and the seven before it are near. Tokens without any farther ones to look at are left out."""

_DIGITS = 9
"""Costs that agree to so many digits count as equal: the rest is rounding, from the order of the additions."""


class LayerAnalysis(Record, frozen=True, kw_only=True):
    """What was measured of every layer, averaged over tokens (and heads). JSON and back without loss.

    Shapes: [L]; `angular_distance` [S, S], `map_similarity` [L - 1] (layer i against i + 1).
    """

    num_tokens: int
    block_influence: tuple[float, ...]
    angular_distance: tuple[tuple[float, ...], ...]
    attention_distance_tokens: tuple[float, ...]
    attention_entropy_nats: tuple[float, ...]
    sink_share: tuple[float, ...]
    local_share: tuple[float, ...]
    map_similarity: tuple[float, ...]

    @property
    def num_layers(self) -> int:
        return len(self.block_influence)

    @property
    def angular_steps(self) -> tuple[float, ...]:
        """How far every layer turns the state. Shapes: [L]."""
        return tuple(self.angular_distance[layer][layer + 1] for layer in range(self.num_layers))


def analyse(trunk: Trunk, batches: Iterable[tuple[Tensor, Tensor]]) -> LayerAnalysis:
    """Measure the layers over batches of (ids, where they are real), one text at a time.

    Peak memory: the states of one text at every layer, and one layer's attention maps of it.

    Shapes: both tensors of a batch are [B, T].
    Raises: ConfigError when no text is long enough, WeightsError for a layer whose output is not finite.
    Source: block influence: ShortGPT (arXiv 2403.03853) eq. 1; angular distance: Gromov et al. (2403.17887) eq. 7;
    share of the first token: StreamingLLM (2309.17453).
    """
    sums = _Sums(trunk.architecture.num_layers)
    # Not inference_mode: the trunk keeps the layers and tables made here, and training takes gradients through them.
    with torch.no_grad():
        for ids_BT, is_real_BT in batches:
            for ids_T, is_real_T in zip(ids_BT, is_real_BT, strict=True):
                if is_real_T.any():
                    sums.add(trunk, ids_T[is_real_T])
    return sums.means()


def choose_boundaries(
    analysis: LayerAnalysis,
    shares: Sequence[tuple[str, float]] = DEFAULT_SHARES,
    *,
    tolerance: float = 0.12,
    min_layers: int = 1,
) -> tuple[Module, ...]:
    """Cut the layers into modules that are each as uniform as can be, and unlike their neighbours.

    A module may have `tolerance` more or less of the layers than its wanted share. Of equally good cuts, the
    one nearest to the shares. The optimum over all contiguous cuts, by dynamic programming.

    Raises: ConfigError when no cut satisfies shares, tolerance and `min_layers`.
    """
    num_layers = analysis.num_layers
    cost = _SegmentCost(analysis)
    best: dict[int, _Cut] = {0: (0.0, 0.0, ())}
    for _, share in shares:
        best = _with_one_more(best, cost, num_layers, share, tolerance, min_layers)
    if num_layers not in best:
        wanted = ", ".join(f"{name} {share:.0%}" for name, share in shares)
        raise ConfigError(
            f"{num_layers} layers cannot be cut into {wanted} within {tolerance:.0%} of the layers each, with at least "
            f"{min_layers} per module; raise the tolerance, or give the modules (such as knowledge:9,reasoning:21)"
        )
    _, _, counts = best[num_layers]
    firsts = list(accumulate(counts, initial=0))[:-1]
    return tuple(
        Module(name=name, first_layer=first, num_layers=count)
        for (name, _), first, count in zip(shares, firsts, counts, strict=True)
    )


_Cut = tuple[float, float, tuple[int, ...]]
"""Cost, distance from the wanted shares, layers per module: tuples compare in that order."""


def _with_one_more(
    best: dict[int, _Cut], cost: "_SegmentCost", num_layers: int, share: float, tolerance: float, min_layers: int
) -> dict[int, _Cut]:
    """From the best cuts that end at each layer to the best ones with a further module behind them."""
    found: dict[int, _Cut] = {}
    for start, (cost_before, miss_before, counts) in best.items():
        for count in range(min_layers, num_layers - start + 1):
            miss = abs(count / num_layers - share)
            if miss > tolerance + 10**-_DIGITS:
                continue
            end = start + count
            total = round(cost_before + cost.of(start, end), _DIGITS)
            cut = (total, round(miss_before + miss, _DIGITS), (*counts, count))
            found[end] = min(cut, found.get(end, cut))
    return found


class _SegmentCost:
    """How much the layers of a segment differ from one another.

    Two equal parts: the layers' distance from the segment's median in what was measured of each, and the unlikeness of
    attention maps between neighbours. Both are scaled to one per layer over the whole model. Medians, since the first
    layer is an outlier in most models, and with means its module would be cut as short as it may be.
    """

    def __init__(self, analysis: LayerAnalysis) -> None:
        measured = (
            analysis.angular_steps,
            analysis.attention_distance_tokens,
            analysis.attention_entropy_nats,
            analysis.sink_share,
            analysis.local_share,
        )
        self._features = [_scaled(values, _spread(values) / len(values)) for values in measured]
        unlikeness = [1.0 - similarity for similarity in analysis.map_similarity]
        self._unlikeness = _scaled(unlikeness, fmean(unlikeness or [0.0]))

    def of(self, start: int, end: int) -> float:
        """For the layers `start` to `end` - 1."""
        spreads = fmean(_spread(values[start:end]) for values in self._features)
        return spreads + sum(self._unlikeness[start : end - 1])


def _spread(values: Sequence[float]) -> float:
    middle = median(values)
    return sum(abs(value - middle) for value in values)


def _scaled(values: Sequence[float], unit: float) -> list[float]:
    """In units of `unit`. Where that is about zero the values differ by rounding alone, and count as 0."""
    return [value / unit if unit > 10**-_DIGITS else 0.0 for value in values]


class _Sums:
    """Running sums over tokens, at fp64; their size depends on the number of layers alone."""

    def __init__(self, num_layers: int) -> None:
        self.num_tokens = 0
        self.num_queries = 0
        self.influence_L = torch.zeros(num_layers, dtype=torch.float64)
        self.angles_SS = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64)
        self.attention_4L = torch.zeros(4, num_layers, dtype=torch.float64)
        self.similarity_L = torch.zeros(num_layers, dtype=torch.float64)

    def add(self, trunk: Trunk, ids_T: Tensor) -> None:
        states = [trunk.embed(ids_T[None])]
        previous_QT: Tensor | None = None
        for index in range(trunk.architecture.num_layers):
            layer = trunk.layer(index)
            maps_NQT = layer.attention_maps(states[-1])[0, :, LOCAL_TOKENS:]
            self.attention_4L[:, index] += _attention_sums(maps_NQT)
            mean_QT = maps_NQT.mean(dim=0)
            if previous_QT is not None:
                self.similarity_L[index - 1] += _similarity_sum(previous_QT, mean_QT)
            previous_QT = mean_QT
            states.append(layer(states[-1]))
            if not states[-1].isfinite().all():
                raise WeightsError(f"layer {index} outputs infinities or NaN; analyse the model at float32")
        cosines_TSS = _cosines(torch.cat(states))
        self.influence_L += (1.0 - cosines_TSS.diagonal(offset=1, dim1=1, dim2=2)).sum(dim=0)
        self.angles_SS += cosines_TSS.arccos().sum(dim=0) / math.pi
        self.num_tokens += len(ids_T)
        self.num_queries += max(0, len(ids_T) - LOCAL_TOKENS)

    def means(self) -> LayerAnalysis:
        """Raises: ConfigError when no token's attention was counted."""
        if self.num_queries == 0:
            raise ConfigError(
                f"none of the texts has more than {LOCAL_TOKENS} tokens; give longer ones to find the boundaries"
            )
        angles_SS = self.angles_SS / self.num_tokens
        angles_SS.fill_diagonal_(0.0)
        distance, entropy, sink, local = (_floats(sums_L / self.num_queries) for sums_L in self.attention_4L)
        return LayerAnalysis(
            num_tokens=self.num_tokens,
            block_influence=_floats(self.influence_L / self.num_tokens),
            angular_distance=tuple(_floats(row_S) for row_S in angles_SS),
            attention_distance_tokens=distance,
            attention_entropy_nats=entropy,
            sink_share=sink,
            local_share=local,
            map_similarity=_floats(self.similarity_L[:-1] / self.num_queries),
        )


def _cosines(states_STH: Tensor) -> Tensor:
    """Cosines between all states of every token. Shapes: [S, T, H] to [T, S, S]."""
    states_TSH = normalize(states_STH.double().transpose(0, 1), dim=-1)
    return (states_TSH @ states_TSH.transpose(1, 2)).clamp(-1.0, 1.0)


def _attention_sums(maps_NQT: Tensor) -> Tensor:
    """Distance (tokens), entropy (nats), share of the first token and of near ones, summed over queries. Shapes: [4]"""
    num_heads, num_queries, num_tokens = maps_NQT.shape
    positions_T = torch.arange(num_tokens)
    distance_QT = positions_T[num_tokens - num_queries :, None] - positions_T
    mean_QT = maps_NQT.mean(dim=0).double()
    return torch.stack(
        (
            (mean_QT * distance_QT).sum(),
            torch.special.entr(maps_NQT).double().sum() / num_heads,
            mean_QT[:, 0].sum(),
            (mean_QT * (distance_QT < LOCAL_TOKENS)).sum(),
        )
    )


def _similarity_sum(first_QT: Tensor, second_QT: Tensor) -> float:
    """Cosines of what two layers' heads look at, summed over queries.

    Without the first token: it takes most of the attention in deep layers and would make all of them look alike.
    """
    return float(cosine_similarity(first_QT[:, 1:], second_QT[:, 1:], dim=-1).sum())


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
