"""Settings: precedence, names, and all mistakes at once."""

from pathlib import Path

import pytest

from engines.config import EngineConfig
from models.errors import ConfigError
from server.config import ServerConfig, flag_of, load_config, setting_names


def defaults() -> ServerConfig:
    """What is served without any setting: all defaults, compiled operators in the cache."""
    return ServerConfig(engine=EngineConfig(native_folder=Path.home() / ".cache" / "fenhe" / "native"))


def test_config_defaults_need_nothing() -> None:
    assert load_config({}, {}) == defaults()


def test_config_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text('host = "0.0.0.1"\nport = 1\ngrace_s = 1\n[limits]\nmax_prompts = 3\n[engine]\nmax_running = 4\n')
    environ = {"FENHE_PORT": "2", "FENHE_GRACE_S": "2.5", "FENHE_ENGINE__MAX_RUNNING": "5", "HOME": "/x"}
    config = load_config({"grace_s": "3", "student": "dir", "engine.precision": None}, environ, file)
    assert (config.host, config.port, config.grace_s) == ("0.0.0.1", 2, 3.0)
    assert (config.limits.max_prompts, config.engine.max_running) == (3, 5)
    assert config.student == Path("dir")
    assert config.engine.precision == "auto"


def test_config_file_may_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text("port = 81")
    assert load_config({}, {"FENHE_CONFIG": str(file)}).port == 81


def test_config_reports_every_mistake_together(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text('prot = 1\nport = "80"\n[limits]\nmax_requests = 0\n[engine]\nmax_running = 0\n')
    environ = {"FENHE_LOG_LEVEL": "loud", "FENHE_ENGINE__COLOUR": "red"}
    with pytest.raises(ConfigError) as caught:
        load_config({"grace_s": "soon"}, environ, file)
    message = caught.value.message
    for part in (
        "prot",
        "port",
        "limits.max_requests",
        "engine.max_running",
        "FENHE_LOG_LEVEL",
        "FENHE_ENGINE__COLOUR",
    ):
        assert part in message
    assert "--grace-s" in message


@pytest.mark.parametrize("text", ["port = ", "[[[", None])
def test_config_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "fenhe.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"fenhe\.toml"):
        load_config({}, {}, file)


def test_config_ignores_what_kubernetes_sets_for_a_service_called_fenhe() -> None:
    environ = {
        "FENHE_PORT": "tcp://10.0.0.1:8000",
        "FENHE_SERVICE_HOST": "10.0.0.1",
        "FENHE_SERVICE_PORT": "8000",
        "FENHE_SERVICE_PORT_HTTP": "8000",
        "FENHE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "FENHE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "FENHE_CACHE": "/models",
    }
    assert load_config({}, environ) == ServerConfig(engine=EngineConfig(native_folder=Path("/models/native")))


def test_setting_flags_are_distinct() -> None:
    names = setting_names()
    assert {"port", "limits.max_requests", "engine.kv_bytes"} <= set(names)
    assert len({flag_of(name) for name in names}) == len(names)


def test_config_number_may_be_unset_by_text() -> None:
    assert load_config({}, {"FENHE_ENGINE__NUM_THREADS": "null"}).engine.num_threads is None
    assert load_config({}, {"FENHE_ACCESS_LOG": "true"}).access_log is True
