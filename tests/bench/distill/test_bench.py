"""`fenhe bench distill`: both sides train the same thing, its formulas on made-up times, and the whole command."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import LlamaForCausalLM

from bench.distill.cli import read_options
from bench.distill.figures import Round, compute_figures
from bench.distill.ours import OurTimes, make_trainer
from bench.distill.peer import (
    Peer,
    choose_loop,
    distillation_loss,
    llama_config,
    load_teacher,
    time_plain,
    time_trainer,
    truncated,
)
from bench.distill.work import Work, prepare_work
from bench.rounds import medians
from models.distill.network.decoder import Trunk
from models.distill.teacher.open_teacher import open_teacher
from models.errors import ConfigError
from server.commands.cli import main

MakeSource = Callable[..., Path]
NUM_TOKENS = 600


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def teacher(tiny_source: MakeSource) -> Path:
    return tiny_source("llama", tie_word_embeddings=True)


@pytest.fixture
def work(teacher: Path) -> Work:
    return prepare_work(
        teacher, modules="a:1,b:1,c:2", num_tokens=NUM_TOKENS, batch_tokens=256, is_whole_vocabulary=True
    )


def in_fp32(work: Work) -> Work:
    return replace(work, trunk=Trunk(work.source, torch.float32))


def without_maps(work: Work) -> Work:
    exits = tuple(replace(exit, has_map=False) for exit in work.layout.exits)
    return replace(work, layout=replace(work.layout, exits=exits))


def first_batch_alone(work: Work) -> Work:
    """One epoch is then one step, whose loss is that of untrained exits."""
    examples = [work.examples[index] for index in work.order[0]]
    return replace(work, examples=examples, order=[list(range(len(examples)))])


@torch.no_grad()
def first_loss(peer: Peer, student: LlamaForCausalLM) -> float:
    return float(distillation_loss(student, peer.teacher, peer.batches[0]))


def test_peer_loss_is_ours_on_the_whole_vocabulary(work: Work, tmp_path: Path) -> None:
    work = first_batch_alone(without_maps(in_fp32(work)))
    ours = make_trainer(work, tmp_path).train(resume=False)
    peer = Peer(work)
    assert len(peer.batches) == 1
    assert not peer.batches[0]["is_real"].all(), "padding must be part of what is compared"
    for exit in work.layout.exits:
        loss = first_loss(peer, truncated(peer.teacher, work.layout.depth(exit)))
        assert loss == pytest.approx(ours.losses[exit.exit_name], rel=0.01)  # our states are kept in bf16
        assert loss > 0.1
    depths = [work.layout.depth(exit) for exit in work.layout.exits]
    assert depths == [1, 2]


def test_both_sides_take_the_same_tokens(work: Work, tmp_path: Path) -> None:
    ours = make_trainer(work, tmp_path).train(resume=False)
    peer = Peer(work)
    assert ours.num_tokens == work.num_tokens == sum(int(batch["is_real"].sum()) for batch in peer.batches)
    assert work.num_tokens >= NUM_TOKENS
    assert ours.step == len(peer.batches) > 1


def test_peer_trains_the_copied_layer_alone(work: Work) -> None:
    peer = Peer(in_fp32(work), time_plain)
    student = truncated(peer.teacher, 1)
    first, before = first_loss(peer, student), {name: value.clone() for name, value in student.state_dict().items()}
    assert time_plain(student, peer.teacher, peer.batches * 5, peer.settings) > 0
    assert first_loss(peer, student) < first
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers.Trainer needs accelerate")
def test_peer_is_the_trainer_where_it_can_run(work: Work) -> None:
    peer = Peer(in_fp32(work))
    assert peer.name == "transformers.Trainer"
    student = truncated(peer.teacher, 1)
    before = first_loss(peer, student)
    assert time_trainer(student, peer.teacher, peer.batches * 5, peer.settings) > 0
    assert first_loss(peer, student) < before
    assert Peer(work).time_exit(work.layout.exits[0]) > 0


def test_peer_is_the_plain_loop_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_loop() is time_plain


@pytest.mark.parametrize("is_tied", [True, False])
def test_peer_teacher_is_the_trunk_read_from_a_gguf(
    is_tied: bool, tiny_source: MakeSource, tiny_gguf: MakeSource
) -> None:
    source = open_teacher(str(tiny_gguf(tiny_source("llama", tie_word_embeddings=is_tied))))
    trunk, ids_BT = Trunk(source, torch.float32), torch.tensor([[5, 9, 300, 7]])
    with torch.no_grad():
        ours = trunk.logits(trunk.norm(trunk.run(trunk.embed(ids_BT), range(4))))
        peers = load_teacher(source, torch.float32, trunk.device)(input_ids=ids_BT).logits
    torch.testing.assert_close(peers, ours, atol=1e-3, rtol=1e-3)


def test_peer_refuses_what_it_cannot_load(work: Work) -> None:
    with pytest.raises(ConfigError, match="Llama"):
        llama_config(msgspec.structs.replace(work.source.architecture, family="qwen3"))


def test_figures_charge_the_reading_once_for_all_epochs() -> None:
    one = Round(ours=OurTimes(reading_s=4.0, steps_s=1.0), peer_s={"a": 2.0, "b": 3.0})
    found = medians(compute_figures([one, one], num_tokens=100, epochs=4))
    assert found["steps_tokens_per_s"] == 200  # 2 exits x 100 tokens in a second
    assert found["tokens_per_s"] == 100  # 4 x 200 in 4 + 4 seconds
    assert found["reading_tokens_per_s"] == 25
    assert found["peer_tokens_per_s"] == 40  # 200 in 5 seconds
    assert (found["peer_tokens_per_s.a"], found["ratio_steps"], found["ratio"]) == (50, 5, 2.5)


def test_ratio_is_paired_within_rounds() -> None:
    ours = [OurTimes(reading_s=1e-9, steps_s=seconds) for seconds in (1.0, 10.0, 2.0)]
    rounds = [Round(ours=one, peer_s={"a": seconds}) for one, seconds in zip(ours, (2.0, 30.0, 8.0), strict=True)]
    found = compute_figures(rounds, num_tokens=10, epochs=1)
    assert found["ratio_steps"] == pytest.approx([2, 3, 4])
    assert medians(found)["ratio_steps"] == pytest.approx(3)


def test_command_prints_and_writes_figures(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    arguments = ["--teacher", str(teacher), "--rounds", "2", "--tokens", "300", "--json", str(out)]
    assert main(["bench", "distill", *arguments]) == 0
    document = msgspec.json.decode(out.read_bytes())
    named = {"steps_tokens_per_s", "tokens_per_s", "reading_tokens_per_s", "peer_tokens_per_s", "ratio_steps", "ratio"}
    named |= {"peer_tokens_per_s.knowledge", "peer_tokens_per_s.reasoning"}
    assert document["figures"].keys() == document["rounds"].keys() == named
    assert all(value > 0 for value in document["figures"].values())
    assert all(len(values) == 2 for values in document["rounds"].values())
    assert {"torch", "transformers"} <= document["versions"].keys()
    assert document["notes"][0].startswith(("peer: plain loop", "peer: transformers.Trainer"))
    assert "charged to 4 epochs" in capsys.readouterr().out


def test_missing_package_names_the_mend(
    monkeypatch: pytest.MonkeyPatch, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "bench.distill.peer", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["bench", "distill", "--teacher", str(teacher)]) == 2
    assert "needs transformers; install it with `pip install 'fenhe[dev]'`" in capsys.readouterr().err


def test_too_little_text_is_refused(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "distill", "--teacher", str(teacher), "--tokens", "100"]) == 2
    assert "--tokens must be at least twice the hidden size, 128" in capsys.readouterr().err


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere" / "out.json")
    with pytest.raises(ConfigError) as caught:
        read_options(["--rounds", "0", "--epochs", "-1", "--teacher", str(tmp_path / "gone"), "--json", nowhere])
    for part in ("--rounds", "--epochs", "gone", "nowhere"):
        assert part in caught.value.message
