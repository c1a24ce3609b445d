"""Settings checked before they are used: whether a server would be open to everybody."""

from pathlib import Path

import pytest

from models.errors import ConfigError
from server.lifecycle.settings_check import read_sound
from server.settings.reading import draft_config


def settings_at_fault(file: Path) -> list[str | None]:
    with pytest.raises(ConfigError) as caught:
        read_sound(lambda: draft_config({}, {}, file))
    return [problem.setting for problem in caught.value.problems]


@pytest.mark.parametrize("mistake", ["[keys]\nfiel = 'x'\n", "[key]\nfile = 'x'\n", "[keys]\nmetrics = 5\n"])
def test_server_is_not_said_to_be_open_while_its_keys_may_only_be_misspelt(tmp_path: Path, mistake: str) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text(f'host = "0.0.0.0"\n{mistake}')
    (setting,) = settings_at_fault(file)
    assert (setting or "").startswith("key")


def test_server_is_said_to_be_open_whatever_its_file_is_called(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('host = "0.0.0.0"\nprot = 1\n')
    assert settings_at_fault(file) == ["prot", "host"]


KV = '[engine]\nkv_precision = "int8"\n'
REMOTE = '[[student]]\nname = "far"\nengine = "remote"\n[student.remote]\nurls = ["http://127.0.0.1:1/v1"]\n'
OWN = '[[student]]\nname = "own"\nfolder = "."\n'
VLLM = OWN + 'engine = "vllm"\n'


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (KV + 'precision = "w8a8"\n', "precision 'w8a8' keeps its KV in fp32; take precision w8a8-native"),
        (KV + VLLM, "kv_cache_dtype"),
        (KV + REMOTE, "upstreams keep the KV"),
    ],
)
def test_int8_kv_that_students_cannot_have_is_refused(tmp_path: Path, settings: str, says: str) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text(settings)
    with pytest.raises(ConfigError) as caught:
        read_sound(lambda: draft_config({}, {}, file))
    (problem,) = caught.value.problems
    assert (problem.setting, says in problem.said) == ("engine.kv_precision", True)


@pytest.mark.parametrize(
    "settings", [KV, KV + OWN, KV + OWN + REMOTE, KV + 'precision = "gguf-native"\n', VLLM, REMOTE]
)
def test_int8_kv_that_students_can_have_is_no_mistake(tmp_path: Path, settings: str) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text(settings)
    config, _ = read_sound(lambda: draft_config({}, {}, file))
    assert (config.engine.kv_precision == "int8") == settings.startswith(KV)
