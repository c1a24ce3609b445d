"""What calibration measures, and how a narrow model answers, against the same sums written out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.distill.data.examples import Example
from models.distill.loss.narrow_loss import HeadSample, divergence, sample_head, text_of
from models.distill.narrowing.allocation import measure_layers
from models.distill.narrowing.calibration import calibrate
from models.distill.narrowing.elimination import eliminate, refit
from models.distill.network.decoder import Trunk, padded
from models.distill.network.narrow_model import LayerStart, NarrowModel
from models.sources.source import ModelSource, open_source

EXAMPLES = [
    Example(task="a", token_ids=tuple(range(5, 5 + length)), num_prompt_tokens=prompt, source="")
    for length, prompt in ((9, 4), (14, 0), (6, 5))
]
FAMILIES = ("llama", "qwen2", "qwen3")


@pytest.fixture(params=FAMILIES)
def source(request: pytest.FixtureRequest, tiny_source: Callable[..., Path]) -> ModelSource:
    return open_source(tiny_source(request.param))


def down_of(source: ModelSource, layer: int) -> torch.Tensor:
    return torch.from_numpy(source.read(f"model.layers.{layer}.mlp.down_proj.weight"))


def whole(source: ModelSource, seed: int = 3) -> list[LayerStart]:
    """The whole width in a random order of neurons, and half of it as it is."""
    size, found = source.architecture.intermediate_size, []
    for layer in range(source.architecture.num_layers):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed + layer))
        down = down_of(source, layer)
        found.append(LayerStart(order_I=order, down_HK={"all": down[:, order], "half": down[:, order[: size // 2]]}))
    return found


def test_moments_are_the_weighted_means(source: ModelSource) -> None:
    trunk = Trunk(source)
    found = calibrate(trunk, EXAMPLES, prompt_weight=0.25, batch_tokens=32)
    size = source.architecture.intermediate_size
    wanted, total = [torch.zeros(size, size) for _ in range(source.architecture.num_layers)], 0.0
    for example in EXAMPLES:
        weights = torch.tensor(
            [0.25] * example.num_prompt_tokens + [1.0] * (example.num_tokens - example.num_prompt_tokens)
        )
        hidden = trunk.embed(padded([example.token_ids])[0])
        for layer in range(len(wanted)):
            said = trunk.layer(layer).gated(trunk.layer(layer).attended(hidden))[0]
            wanted[layer] += (said * weights[:, None]).T @ said
            hidden = trunk.layer(layer)(hidden)
        total += float(weights.sum())
    assert found.num_tokens == 29
    for one, other in zip(found.moments, wanted, strict=True):
        torch.testing.assert_close(one, other / total, rtol=1e-4, atol=1e-6)


def test_the_whole_width_in_another_order_is_the_model(source: ModelSource) -> None:
    trunk = Trunk(source)
    model = NarrowModel(trunk, whole(source), trains_output=True)
    ids = padded([example.token_ids for example in EXAMPLES])[0]
    full = trunk.norm(trunk.run(trunk.embed(ids), range(source.architecture.num_layers)))
    torch.testing.assert_close(model(ids, "all"), full, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(ids, "half"), full, atol=1e-2)


def test_a_narrow_layer_leaves_out_the_last_neurons_of_its_order(source: ModelSource) -> None:
    trunk, starts = Trunk(source), whole(source)
    size = source.architecture.intermediate_size
    with torch.no_grad():
        for layer, start in enumerate(starts):
            trunk.layer(layer).get_parameter("mlp__down_proj__weight")[:, start.order_I[size // 2 :]] = 0.0
    model = NarrowModel(Trunk(source), starts, trains_output=False)
    ids = padded([EXAMPLES[0].token_ids])[0]
    without = trunk.norm(trunk.run(trunk.embed(ids), range(source.architecture.num_layers)))
    torch.testing.assert_close(model(ids, "half"), without, rtol=1e-4, atol=1e-4)


def test_widths_share_what_they_learn(source: ModelSource) -> None:
    model = NarrowModel(Trunk(source), whole(source), trains_output=False)
    layer = next(model.narrow_layers())
    model(padded([EXAMPLES[1].token_ids])[0], "half").square().sum().backward()
    gradient, half = layer.down_change.grad, source.architecture.intermediate_size // 2
    assert gradient is not None
    assert gradient[:, :half].abs().sum() > 0
    assert gradient[:, half:].abs().sum() == 0
    assert layer.output_change.grad is None


def test_what_is_trained_is_the_changes_alone(source: ModelSource) -> None:
    model = NarrowModel(Trunk(source), whole(source), trains_output=True)
    assert len(model.trained()) == 2 * source.architecture.num_layers
    assert {parameter.abs().sum().item() for parameter in model.trained()} == {0.0}


def test_layers_are_measured_one_at_a_time(source: ModelSource) -> None:
    trunk = Trunk(source)
    moments = calibrate(trunk, EXAMPLES, prompt_weight=1.0).moments
    size, num_layers = source.architecture.intermediate_size, source.architecture.num_layers
    orders = [eliminate(down_of(source, layer), moments[layer], least=size // 2).order_I for layer in range(num_layers)]
    downs = [refit(down_of(source, layer), moments[layer], orders[layer][: size // 2]) for layer in range(num_layers)]
    head = HeadSample(head_MH=trunk.head_VH, raise_M=torch.zeros(len(trunk.head_VH)))
    found = measure_layers(trunk, EXAMPLES, downs, orders, head)
    for layer in range(num_layers):
        starts = [
            LayerStart(
                order_I=orders[index],
                down_HK={"x": downs[index] if index == layer else down_of(source, index)[:, orders[index]]},
            )
            for index in range(num_layers)
        ]
        model, total, count = NarrowModel(trunk, starts, trains_output=False), 0.0, 0
        for example in EXAMPLES:
            text = text_of([example], 0.0, 0)
            full = trunk.norm(trunk.run(trunk.embed(text.ids_BT), range(num_layers)))[text.counts_BT]
            total += float(divergence(full, model(text.ids_BT, "x")[text.counts_BT], head).detach().sum())
            count += len(full)
        assert found[layer] == pytest.approx(total / count, rel=1e-3, abs=1e-6)


def test_positions_count_by_the_token_behind_them() -> None:
    text = text_of(EXAMPLES, 0.5, prefix=2)
    assert text.num_tokens == 29
    first, plain, other = (text.counts_BT[row].nonzero().flatten().tolist() for row in range(3))
    assert first == [1, 2, 3, 4, 5, 6, 7]  # the prefix teaches nothing, and nothing follows the last token
    assert plain == list(range(13))
    assert other == [1, 2, 3, 4]
    assert text.weight_N.tolist() == [0.5] * 2 + [1.0] * 5 + [1.0] * 13 + [0.5] * 3 + [1.0]


def test_a_sample_of_the_whole_vocabulary_is_the_vocabulary(source: ModelSource) -> None:
    trunk = Trunk(source)
    vocab = len(trunk.head_VH)
    everything = sample_head(trunk, torch.arange(vocab), torch.tensor([[3]]), 10, torch.Generator())
    assert torch.equal(everything.head_MH, trunk.head_VH)
    assert everything.raise_M.tolist() == [0.0] * vocab
    some = sample_head(trunk, torch.tensor([1, 2]), torch.tensor([[3, 2]]), 8, torch.Generator().manual_seed(0))
    assert len(some.head_MH) == 3 + 8
    assert sorted(set(some.raise_M.tolist())) == pytest.approx([0.0, torch.tensor((vocab - 3) / 8).log().item()])


def test_equal_states_do_not_diverge_and_others_do(source: ModelSource) -> None:
    trunk = Trunk(source)
    head = sample_head(trunk, torch.arange(40), torch.tensor([[3]]), 20, torch.Generator())
    states = torch.randn(5, source.architecture.hidden_size, generator=torch.Generator().manual_seed(1))
    assert divergence(states, states, head).abs().max() < 1e-5
    assert (divergence(states, -states, head) > 0.1).all()
