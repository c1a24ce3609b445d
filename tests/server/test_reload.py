"""Settings and keys read again while the server runs: all of what may change, or nothing."""

import hashlib
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.config import ServerConfig, load_config
from server.context import make_context
from server.reload import differences, merge
from tests.server.conftest import SCRIPT, Served, TinyStudent, make_engine, open_scripted, run_server, until
from tests.server.test_serve import run

ADMIN = "fk-admin"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


BEFORE = f"""
[admin]
key_sha256 = "{digest(ADMIN)}"
[limits]
max_prompts = 2
[engine]
max_running = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "fenhe.toml"
    file.write_text(BEFORE)
    return file


@pytest.fixture
def served(student: TinyStudent, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    def load() -> ServerConfig:
        return load_config({}, {"HOME": "/x"}, file)

    def make(config: ServerConfig, students: object, **options: object) -> object:
        return make_context(config, students, load_config=load, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("tests.server.conftest.make_context", make)
    with run_server([open_scripted(student, make_engine(SCRIPT))], load()) as running:
        yield running


def reload(served: Served, key: str = ADMIN) -> httpx.Response:
    return served.http.post("/admin/reload", headers={"authorization": f"Bearer {key}"})


def prompts(served: Served, number: int) -> int:
    return served.post("/v1/completions", {"model": "auto", "prompt": ["a"] * number}).status_code


def test_reload_puts_new_limits_in_force(served: Served, file: Path) -> None:
    assert (prompts(served, 2), prompts(served, 3)) == (200, 400)
    file.write_text(BEFORE.replace("max_prompts = 2", "max_prompts = 3") + "[admission]\nmax_queued_tokens = 5\n")
    assert reload(served).json() == {
        "changed": ["limits.max_prompts", "admission.max_queued_tokens"],
        "needs_restart": [],
        "num_keys": 0,
    }
    assert prompts(served, 3) == 200
    assert served.student.gate.admission.bounds.max_queued_tokens == 5


def test_reload_says_what_waits_for_a_restart(served: Served, file: Path) -> None:
    file.write_text("port = 9\n" + BEFORE.replace("max_running = 4", "max_running = 5"))
    assert reload(served).json()["needs_restart"] == ["port", "engine.max_running"]
    assert served.context.config.engine.max_running == 4


def test_reload_brings_keys_and_takes_them_away(served: Served, file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[key]]\nname = "web"\nsha256 = "{digest("fk-web")}"\n')
    file.write_text(f'{BEFORE}[keys]\nfile = "{keys}"\n')
    assert reload(served).json()["num_keys"] == 1
    assert served.chat("hello").status_code == 401
    assert served.chat("hello", headers={"authorization": "Bearer fk-web"}).status_code == 200
    keys.write_text(f'[[key]]\nname = "web"\nsha256 = "{digest("fk-next")}"\n')
    assert reload(served).json()["changed"] == []  # the setting names the same file
    assert served.chat("hello", headers={"authorization": "Bearer fk-web"}).status_code == 401
    assert served.chat("hello", headers={"authorization": "Bearer fk-next"}).status_code == 200


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[limits]\nmax_prompts = 0\n[nonsense]\nx = 1", "limits.max_prompts"),
        ("[[[", "cannot be read"),
        ('[keys]\nfile = "/nowhere/keys.toml"', "/nowhere/keys.toml"),
        ("[router]\nfast = 7", "fast"),
    ],
)
def test_bad_file_changes_nothing_and_is_told(
    served: Served, file: Path, text: str, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = served.context.config
    file.write_text(text)
    with caplog.at_level(logging.ERROR):
        response = reload(served)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "old settings stay" in message
    assert part in message
    assert part in caplog.text
    assert served.context.config is before
    assert prompts(served, 3) == 400


def test_reload_needs_the_admin_key(served: Served) -> None:
    assert reload(served, "fk-other").status_code == 401


def test_reload_without_settings_to_read_says_so(student: TinyStudent) -> None:
    config = load_config({"admin.key_sha256": digest(ADMIN)}, {})
    with run_server([open_scripted(student, make_engine(SCRIPT))], config) as served:
        assert reload(served).status_code == 400


def test_reload_to_no_keys_is_refused_where_others_could_reach_the_server(served: Served, file: Path) -> None:
    served.context.live.config = load_config({"host": "0.0.0.0", "allow_no_keys": "true"}, {}, file)
    response = reload(served)
    assert response.status_code == 400
    assert "--allow-no-keys" in response.json()["error"]["message"]


def test_thresholds_of_the_router_change_at_once(served: Served, file: Path) -> None:
    def path() -> str:
        return str(served.route("math").json()["path"])

    assert path() == "shallow"
    file.write_text(f"{BEFORE}[router.min_retention]\nmath = 0.99\n")
    assert reload(served).json()["changed"] == ["router.min_retention"]
    assert path() == "full"


def test_merge_takes_no_setting_that_it_would_not_put_in_force(tmp_path: Path) -> None:
    old, new = ServerConfig(), ServerConfig(host="::1", port=1, grace_s=2.0)
    merged = merge(old, new)
    assert list(differences(old, merged)) == ["grace_s"]
    assert list(differences(merged, new)) == ["host", "port"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_hangup_reloads_and_the_server_goes_on() -> None:
    with run(grace_s=1) as running:
        running.process.send_signal(signal.SIGHUP)
        assert running.status("/health") == 200
        assert until(lambda: running.process.poll() is None)
        running.process.send_signal(signal.SIGTERM)
        _, stderr = running.process.communicate(timeout=10)
        assert running.process.returncode == 0
        assert "not reloaded" in stderr  # that program was not started from a file


def test_commands_make_and_check(tmp_path: Path) -> None:
    def fenhe(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server.cli", *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)

    made = fenhe("keys", "make", "web")
    key = made.stdout.splitlines()[1].removeprefix("# ")
    assert f'sha256 = "{digest(key)}"' in made.stdout
    assert digest("fk-mine") in fenhe("keys", "hash", "web", given="fk-mine\n").stdout
    assert fenhe("keys", "hash", "web").returncode == 2
    keys, file = tmp_path / "keys.toml", tmp_path / "fenhe.toml"
    keys.write_text(made.stdout)
    file.write_text(f'host = "0.0.0.0"\n[keys]\nfile = "{keys}"\n')
    checked = fenhe("config", "check", str(file))
    assert (checked.returncode, "API keys: 1" in checked.stdout) == (0, True)
    file.write_text('host = "0.0.0.0"\n')
    checked = fenhe("config", "check", str(file))
    assert (checked.returncode, "--keys-file" in checked.stderr) == (2, True)
