"""`fenhe export --format vllm`: a path as a plain checkpoint that transformers loads, and what has none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from engines.vllm.form import ServedForm, form_in
from models.building.build import build_student
from models.building.width_file import NarrowPath, read_width_file
from models.reference import ReferenceDecoder
from models.sources.source import open_source
from models.student.manifest import Width
from server.commands.cli import main
from tests.models.width_files import NUM_NEURONS, PLAN, write_tiny_widths

IDS = [5, 17, 230, 44, 9, 101, 7]
EVEN = (Width(name="even", neurons=(128, 128, 128, 128), has_own_output=True), *PLAN.widths[2:])


def build(folder: Path, out: Path, **plan: Any) -> Any:
    widths = read_width_file(write_tiny_widths(out.with_suffix(".widths"), open_source(folder), **plan))
    cut = "knowledge:1,reasoning:2,adapter:1"
    build_student(folder, out, modules=cut, widths=widths.file, precisions=("fp32",))
    return widths


def logits_of(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_paths_of_even_widths_and_depths_are_plain_checkpoints(family: str, tiny_source: Any, tmp_path: Path) -> None:
    folder = tiny_source(family, intermediate_size=NUM_NEURONS)
    short = NarrowPath(name="short", width="even", modules=("knowledge", "reasoning"), exit="reasoning_exit")
    paths = (NarrowPath(name="half", width="even"), short)
    widths = build(folder, tmp_path / "student", widths=EVEN, paths=paths)
    source = open_source(folder)
    even = widths.narrow_tensors(source, "even")
    for path, num_layers, changed in (("full", 4, {}), ("half", 4, even), ("short", 3, even)):
        out = tmp_path / f"out-{path}"
        assert main(["export", str(tmp_path / "student"), "--format", "vllm", "--path", path, "--out", str(out)]) == 0
        decoder = ReferenceDecoder(source, changed)
        expected = decoder.logits(decoder.layers(decoder.embed(IDS), 0, num_layers))
        np.testing.assert_allclose(logits_of(out), expected, atol=2e-4, rtol=1e-4)
    whole = load_file(tmp_path / "out-full" / "model.safetensors")
    for name, values in whole.items():
        np.testing.assert_array_equal(values, source.read(name), err_msg=name)
    assert json.loads((tmp_path / "out-half" / "config.json").read_text())["intermediate_size"] == 128


def test_a_path_whose_layers_differ_in_size_has_no_plain_checkpoint(
    tiny_source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tiny_source("llama", intermediate_size=NUM_NEURONS), tmp_path / "student")
    command = ["export", str(tmp_path / "student"), "--format", "vllm", "--out", str(tmp_path / "out")]
    assert main([*command, "--path", "middle"]) == 2
    assert "path 'middle' of student" in (said := capsys.readouterr().err)
    assert "has from 64 to 192 neurons in its layers" in said
    assert main([*command, "--path", "other"]) == 2
    assert "has no path 'other', only wide, middle, slim, full" in capsys.readouterr().err
    assert main([*command[:2], "--path", "full", "--out", str(tmp_path / "out")]) == 2
    assert "it needs --format vllm" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_whole_student_has_its_form_and_the_matrices_of_its_widths(tiny_source: Any, tmp_path: Path) -> None:
    folder = tiny_source("llama", intermediate_size=NUM_NEURONS)
    widths = build(folder, tmp_path / "student")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "student"), "--format", "vllm", "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["FenheLlamaForCausalLM"]

    class Config:
        fenhe = config["fenhe"]

    form: ServedForm = form_in(Config())
    assert set(form.paths) == {"wide", "middle", "slim", "full"}
    source = widths.source_for(open_source(folder))
    tensors = load_file(out / "model.safetensors")
    assert set(tensors) == source.tensor_names()
    for name, values in tensors.items():
        np.testing.assert_array_equal(values, source.read(name), err_msg=name)
    assert main(["export", str(tmp_path / "student"), "--format", "vllm", "--out", str(out)]) == 2
