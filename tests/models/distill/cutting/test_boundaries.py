import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from models.distill.cutting.boundaries import LayerAnalysis, analyse, choose_boundaries
from models.distill.network.decoder import DecoderLayer, Trunk, padded
from models.errors import ConfigError, WeightsError
from models.sources.source import open_source

TEXTS = ([5, 17, 3, 99, 42, 7, 250, 11, 36, 81, 2, 64], [9, 8, 200, 3, 1, 77, 140, 23, 5, 6, 18])


def analysis_of(steps: list[float], similarity: list[float] | None = None) -> LayerAnalysis:
    """Constructed: layer i turns the state by `steps[i]`; what is not given is the same in every layer."""
    count = len(steps)
    angles = [[abs(sum(steps[:row]) - sum(steps[:column])) for column in range(count + 1)] for row in range(count + 1)]
    return LayerAnalysis(
        num_tokens=100,
        block_influence=tuple(steps),
        angular_distance=tuple(tuple(row) for row in angles),
        attention_distance_tokens=(20.0,) * count,
        attention_entropy_nats=(1.5,) * count,
        sink_share=(0.5,) * count,
        local_share=(0.25,) * count,
        map_similarity=tuple(similarity or [0.75] * (count - 1)),
    )


def counts(analysis: LayerAnalysis, **options: float) -> list[int]:
    modules = choose_boundaries(analysis, **options)  # type: ignore[arg-type]
    assert [module.name for module in modules] == ["knowledge", "reasoning", "adapter"]
    assert [module.first_layer for module in modules] == [0, modules[0].num_layers, 10 - modules[2].num_layers]
    return [module.num_layers for module in modules]


@pytest.fixture
def trunk(tiny_source: Callable[..., Path]) -> Trunk:
    return Trunk(open_source(tiny_source("llama")))


class Stand:
    """A trunk of made-up layers: `states[0]` is the embedding of every token, layer i returns `states[i + 1]`."""

    def __init__(self, states: list[list[float]], attention: list[Callable[[int], Tensor]]) -> None:
        self.states, self.attention = states, attention
        self.architecture = type("Sizes", (), {"num_layers": len(attention)})

    def embed(self, ids_BT: Tensor) -> Tensor:
        return torch.tensor(self.states[0]).expand(*ids_BT.shape, -1)

    def layer(self, index: int) -> Callable[[Tensor], Tensor]:
        def run(hidden_BTH: Tensor) -> Tensor:
            assert torch.equal(hidden_BTH[0, 0], torch.tensor(self.states[index]))
            return torch.tensor(self.states[index + 1]).expand_as(hidden_BTH)

        run.attention_maps = lambda hidden_BTH: self.attention[index](hidden_BTH.shape[1])  # type: ignore[attr-defined]
        return run


def on_first(length: int) -> Tensor:
    """One head, all attention on the first token."""
    maps = torch.zeros(1, 1, length, length)
    maps[..., 0] = 1.0
    return maps


def split(length: int) -> Tensor:
    """Two heads: one looks at the token itself, one half at the token before it and half at the first."""
    own, other = torch.eye(length), torch.zeros(length, length)
    other[1:] += 0.5 * torch.eye(length)[:-1]
    other[1:, 0] += 0.5
    return torch.stack((own, other))[None]


def uniform(length: int) -> Tensor:
    lower = torch.ones(length, length).tril()
    return (lower / lower.sum(dim=-1, keepdim=True))[None, None]


def ids(*lengths: int) -> tuple[Tensor, Tensor]:
    return padded([[1] * length for length in lengths])


def analyse_stand(stand: Stand, *batches: tuple[Tensor, Tensor]) -> LayerAnalysis:
    return analyse(stand, batches)  # type: ignore[arg-type]


def test_analyse_measures_turns_by_hand() -> None:
    # East, north-east (45 degrees; twice as long, which must not matter), west (135 from north-east, 180 from east).
    stand = Stand([[1.0, 0.0], [2.0, 2.0], [-3.0, 0.0]], [on_first, on_first])
    result = analyse_stand(stand, ids(9))
    assert result.block_influence == pytest.approx((1 - math.sqrt(0.5), 1 + math.sqrt(0.5)), abs=1e-6)
    turns = ((0.0, 0.25, 1.0), (0.25, 0.0, 0.75), (1.0, 0.75, 0.0))
    for row, expected in zip(result.angular_distance, turns, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
    assert result.angular_steps == pytest.approx((0.25, 0.75), abs=1e-6)


def test_analyse_measures_attention_by_hand() -> None:
    # Ten tokens: the tokens at 8 and 9 are asked, the others have nothing farther away than their neighbourhood.
    stand = Stand([[1.0]] * 4, [on_first, split, uniform])
    result = analyse_stand(stand, ids(10))
    assert result.num_tokens == 10
    # split: own head 0; other head (1 + 8) / 2 and (1 + 9) / 2. uniform: the mean of 0..8 and of 0..9.
    assert result.attention_distance_tokens == pytest.approx((8.5, 2.375, 4.25))
    assert result.attention_entropy_nats == pytest.approx(
        (0.0, math.log(2) / 2, (math.log(9) + math.log(10)) / 2), abs=1e-6
    )
    assert result.sink_share == pytest.approx((1.0, 0.25, (1 / 9 + 1 / 10) / 2))
    assert result.local_share == pytest.approx((0.0, 0.75, (8 / 9 + 8 / 10) / 2))


def test_analyse_compares_maps_of_neighbours_without_the_first_token() -> None:
    stand = Stand([[1.0]] * 5, [uniform, uniform, split, on_first])
    result = analyse_stand(stand, ids(9))
    # split, without the first token: 1/2 on itself, 1/4 on the token before; uniform: 1/9 on each of eight.
    cosine = (0.5 + 0.25) / (math.sqrt(0.3125) * math.sqrt(8))
    assert result.map_similarity == pytest.approx((1.0, cosine, 0.0), abs=1e-6)


def test_analyse_weighs_texts_by_their_tokens_over_batches() -> None:
    stand = Stand([[1.0], [1.0]], [uniform])
    result = analyse_stand(stand, ids(9, 3), ids(11))
    assert result.num_tokens == 23
    # Queries at 8 (first text) and at 8, 9, 10 (third): distances 4, 4, 4.5, 5.
    assert result.attention_distance_tokens == pytest.approx((17.5 / 4,))


def test_analyse_does_not_see_padding(trunk: Trunk) -> None:
    together = analyse(trunk, [padded(TEXTS)])
    apart = analyse(trunk, [padded([text]) for text in TEXTS])
    assert msgspec.to_builtins(together) == msgspec.to_builtins(apart)
    assert together.num_tokens == 23


def test_analyse_of_a_real_layer_agrees_with_its_states(trunk: Trunk) -> None:
    result = analyse(trunk, [padded(TEXTS[:1])])
    embedded_BTH = trunk.embed(padded(TEXTS[:1])[0])
    last_BTH = trunk.run(embedded_BTH, range(4))
    cosine_T = (embedded_BTH * last_BTH).sum(-1) / embedded_BTH.norm(dim=-1) / last_BTH.norm(dim=-1)
    assert result.angular_distance[0][4] == pytest.approx(float((cosine_T.arccos() / math.pi).mean()), abs=1e-5)
    assert [result.angular_distance[state][state] for state in range(5)] == [0.0] * 5, "not what arccos rounds to"
    assert len(result.block_influence) == len(result.attention_distance_tokens) == len(result.map_similarity) + 1 == 4
    assert result.angular_distance[1][3] == pytest.approx(result.angular_distance[3][1])


def test_analyse_leaves_the_trunk_trainable(trunk: Trunk) -> None:
    batch = padded(TEXTS)
    analyse(trunk, [batch])
    layer: DecoderLayer = trunk.copy_of(0)
    layer(trunk.layer(0)(trunk.embed(batch[0]))).sum().backward()
    assert layer.get_parameter("self_attn__q_proj__weight").grad is not None


def test_analyse_refuses_texts_that_are_all_short() -> None:
    stand = Stand([[1.0], [1.0]], [uniform])
    with pytest.raises(ConfigError, match="more than 8 tokens"):
        analyse_stand(stand, ids(8, 2))
    with pytest.raises(ConfigError, match="more than 8 tokens"):
        analyse_stand(stand)


def test_analyse_names_the_layer_that_overflows() -> None:
    stand = Stand([[1.0], [2.0], [math.inf]], [uniform, uniform])
    with pytest.raises(WeightsError, match="layer 1"):
        analyse_stand(stand, ids(9))


def test_analysis_survives_json(trunk: Trunk) -> None:
    result = analyse(trunk, [padded(TEXTS)])
    assert msgspec.json.decode(msgspec.json.encode(result), type=LayerAnalysis) == result


@pytest.mark.parametrize("cut", [(3, 5, 2), (2, 5, 3), (4, 4, 2), (4, 5, 1), (2, 6, 2)])
def test_choice_finds_where_measured_figures_change(cut: tuple[int, int, int]) -> None:
    first, middle, last = cut
    turns = [0.1] * first + [0.02] * middle + [0.05] * last
    assert counts(analysis_of(turns)) == list(cut)
    for name in ("attention_distance_tokens", "attention_entropy_nats", "sink_share", "local_share"):
        figures = (0.1,) * first + (0.4,) * middle + (0.25,) * last
        assert counts(msgspec.structs.replace(analysis_of([0.1] * 10), **{name: figures})) == list(cut), name


@pytest.mark.parametrize("cut", [(2, 5, 3), (4, 5, 1)])
def test_choice_finds_where_attention_maps_change(cut: tuple[int, int, int]) -> None:
    similarity = [0.9] * 9
    similarity[cut[0] - 1] = similarity[cut[0] + cut[1] - 1] = 0.4
    assert counts(analysis_of([0.1] * 10, similarity=similarity)) == list(cut)


def test_choice_stays_within_the_tolerance() -> None:
    similarity = [0.9] * 9
    similarity[5] = similarity[7] = 0.4
    analysis = analysis_of([0.1] * 10, similarity=similarity)
    assert counts(analysis, tolerance=0.3) == [6, 2, 2]
    assert counts(analysis, tolerance=0.1) == [3, 5, 2], "the second cut where it belongs, the first as wanted"


def test_choice_respects_the_least_number_of_layers() -> None:
    turns = [0.1] * 4 + [0.02] * 5 + [0.05]
    assert counts(analysis_of(turns)) == [4, 5, 1]
    assert counts(analysis_of(turns), min_layers=2) == [4, 4, 2]


def test_choice_among_equal_cuts_is_nearest_to_the_shares() -> None:
    assert counts(analysis_of([0.1] * 10, similarity=[1.0] * 9), tolerance=0.25) == [3, 5, 2]


def test_choice_is_not_moved_by_an_odd_first_layer() -> None:
    # As measured on real models: the first layer turns the state far more than any other. With means in place of
    # medians a first module of two layers would look best.
    turns = [0.5, 0.02, 0.02, 0.02, 0.03, 0.03, 0.03, 0.03, 0.02, 0.02]
    assert counts(analysis_of(turns)) == [4, 4, 2]


def test_choice_takes_other_modules_and_is_the_best_of_all() -> None:
    analysis = analysis_of([0.1] * 2 + [0.02] * 4 + [0.1] * 3 + [0.05] * 3)
    modules = choose_boundaries(analysis, [(name, 0.25) for name in "abcd"], tolerance=1.0)
    assert [(module.name, module.first_layer, module.num_layers) for module in modules] == [
        ("a", 0, 2),
        ("b", 2, 4),
        ("c", 6, 3),
        ("d", 9, 3),
    ]


def test_choice_of_a_model_too_shallow_names_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"2 layers cannot be cut into knowledge 30%.*raise the tolerance"):
        choose_boundaries(analysis_of([0.1, 0.1]))
    with pytest.raises(ConfigError, match="at least 5 per module"):
        choose_boundaries(analysis_of([0.1] * 10), min_layers=5)
