"""The command line of `fenhe bench engines`: every mistake reported at once, and figures for what is there."""

import importlib.util
from pathlib import Path

import msgspec
import pytest

from bench.engines.cli import read_options, run
from bench.engines.rounds import PEER_NAMES
from models.errors import ConfigError


def test_mistakes_are_told_together(tmp_path: Path) -> None:
    arguments = ["--cases", "decode_1,sing", "--peers", "abacus", "--threads", "0", "--rounds", "0"]
    with pytest.raises(ConfigError) as caught:
        read_options([*arguments, "--json", str(tmp_path / "nowhere" / "out.json")])
    for part in ("'sing'", "'abacus'", "--threads", "--rounds", "nowhere"):
        assert part in caught.value.message


def test_missing_student_is_a_mistake_that_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--student", str(tmp_path), "--peers", "none"]) == 2
    assert "fenhe build" in capsys.readouterr().err


def test_missing_gguf_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--peers-only", "--gguf", str(tmp_path / "none.gguf")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_nothing_to_measure_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--peers-only", "--peers", "none"]) == 2
    assert "nothing to measure" in capsys.readouterr().err


def test_chosen_peers_keep_the_order_of_the_table(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    options = read_options(["--peers-only", "--peers", "openvino,llama.cpp", "--gguf", str(file)])
    assert options.peers == tuple(name for name in PEER_NAMES if name != "vllm")
    assert (options.student, options.num_rounds, options.num_threads) == (None, 3, 2)


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is not None, reason="llama_cpp is installed here")
def test_absent_peer_is_reported_in_the_table_and_the_json(
    tmp_path: Path, tiny_source: object, tiny_gguf: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(tiny_source)
    assert callable(tiny_gguf)
    file = tmp_path / "out.json"
    gguf = tiny_gguf(tiny_source("llama"))
    arguments = ["--peers-only", "--peers", "llama.cpp", "--quick", "--gguf", str(gguf), "--json", str(file)]
    assert run(arguments) == 0
    told = "llama.cpp: absent: llama_cpp is not installed: pip install 'fenhe[bench]'"
    assert told in capsys.readouterr().out
    document = msgspec.json.decode(file.read_bytes())
    assert told in document["notes"]
    assert document["figures"] == {}
    assert document["machine"]["cores"] >= 1
    assert "python" in document["versions"]
