"""Settings that need packages: reported before anything slow is done."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import ConfigError
from router.cache.config import CacheConfig
from server.commands.config import check
from server.lifecycle.settings_check import read_sound
from server.settings.config import ServerConfig, TracingConfig
from server.settings.optional_packages import missing_packages
from server.settings.reading import draft_config

WANTED = ServerConfig(cache=CacheConfig(url="redis://localhost"), tracing=TracingConfig(enabled=True))


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extras are not: a module of None cannot be imported."""
    for name in ("redis", "opentelemetry.sdk", "opentelemetry.exporter"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("nothing_installed")
def test_missing_packages_are_told_with_how_to_install_them() -> None:
    redis, tracing = missing_packages(WANTED)
    assert redis.said.startswith("cache.url")
    assert "fenhe[redis]" in redis.said
    assert "fenhe[otel]" in tracing.said
    assert (redis.setting, tracing.setting) == ("cache.url", "tracing.enabled")


@pytest.mark.usefixtures("nothing_installed")
def test_packages_of_what_is_off_are_not_missed() -> None:
    off = ServerConfig(cache=CacheConfig(enabled=False, url="redis://localhost"))
    assert missing_packages(off) == missing_packages(ServerConfig()) == []


def test_packages_that_are_there_are_found_and_not_imported() -> None:
    pytest.importorskip("redis")
    pytest.importorskip("opentelemetry.sdk")
    program = "import sys; from tests.server.settings.test_optional_packages import WANTED; "
    program += "from server.settings.optional_packages import missing_packages;"
    program += (
        "assert missing_packages(WANTED) == []; print('redis' in sys.modules, 'opentelemetry.sdk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "False False\n", done.stderr


@pytest.mark.usefixtures("nothing_installed")
def test_check_does_not_call_sound_what_serve_would_refuse(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text('[cache]\nurl = "redis://localhost"\n[tracing]\nenabled = true\n')
    with pytest.raises(ConfigError) as caught:
        check(file, {})
    assert len(caught.value.problems) == 2


@pytest.mark.usefixtures("nothing_installed")
def test_start_lists_packages_beside_all_other_mistakes() -> None:
    flags = {"cache.url": "redis://localhost", "host": "0.0.0.0", "keys.file": "/nowhere", "port": "high"}
    with pytest.raises(ConfigError) as caught:
        read_sound(lambda: draft_config(flags, {"FENHE_PROT": "1"}))
    parts = ("FENHE_PROT", "--port", "fenhe[redis]", "/nowhere")
    assert len(caught.value.problems) == len(parts)
    for part in parts:
        assert part in caught.value.message


def test_start_is_not_said_to_be_open_when_its_keys_are_only_mistaken() -> None:
    with pytest.raises(ConfigError) as caught:
        read_sound(lambda: draft_config({"host": "0.0.0.0"}, {"FENHE_KEYS__SHA256": "x"}))
    assert len(caught.value.problems) == 1
