"""Settings and keys read again while the server runs: all of what may change, or nothing."""

import dataclasses
import hashlib
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from models.errors import ConfigError, Problem
from models.student.manifest import write_manifest
from server.commands.cli import main
from server.commands.config import check
from server.context import make_context
from server.lifecycle.reload import differences, merge
from server.settings.config import ServerConfig
from server.settings.reading import draft_config, load_config
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
    def draft() -> tuple[ServerConfig, list[Problem]]:
        return draft_config({}, {"HOME": "/x"}, file)

    def make(config: ServerConfig, students: object, **options: object) -> object:
        config = dataclasses.replace(config, allowed_hosts=())  # as the file has it
        return make_context(config, students, draft_config=draft, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("tests.server.conftest.make_context", make)
    with run_server([open_scripted(student, make_engine(SCRIPT))], draft()[0]) as running:
        yield running


def reload(served: Served, key: str = ADMIN) -> httpx.Response:
    return served.http.post("/admin/reload", headers={"authorization": f"Bearer {key}"})


def prompts(served: Served, number: int) -> int:
    return served.post("/v1/completions", {"model": "auto", "prompt": ["a"] * number}).status_code


def test_reload_turns_recommended_sampling_off_and_on(served: Served, file: Path) -> None:
    for value in ("false", "true"):
        file.write_text(f"recommended_sampling = {value}\n" + BEFORE)
        assert reload(served).json()["changed"] == ["recommended_sampling"]
        assert served.context.config.recommended_sampling is (value == "true")


def test_reload_puts_new_limits_in_force(served: Served, file: Path) -> None:
    assert (prompts(served, 2), prompts(served, 3)) == (200, 400)
    file.write_text(BEFORE.replace("max_prompts = 2", "max_prompts = 3") + "[admission]\nmax_queued_tokens = 5\n")
    assert reload(served).json() == {
        "changed": ["limits.max_prompts", "admission.max_queued_tokens"],
        "needs_restart": [],
        "num_keys": 0,
    }
    assert prompts(served, 3) == 200
    assert served.student.admission.turns.bounds.max_queued_tokens == 5


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


def test_bad_file_has_every_mistake_told_and_not_only_those_of_settings(
    served: Served, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    keys = tmp_path / "keys.toml"
    keys.write_text('[[key]]\nname = "a"\nsha256 = "x"\n')
    file.write_text(f'prot = 1\n{BEFORE}[keys]\nfile = "{keys}"\n[cache]\nurl = "redis://localhost"\n')
    message = reload(served).json()["error"]["message"]
    for part in ("prot: no such setting; did you mean port?", "key[0]", "fenhe[redis]"):
        assert part in message


def last_reload(served: Served) -> str:
    lines = served.http.get("/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("fenhe_last_reload_successful "))


def test_metrics_tell_how_the_last_reload_went(served: Served, file: Path) -> None:
    told = [last_reload(served)]
    for text in ("port = 0.5", BEFORE):
        file.write_text(text)
        reload(served)
        told.append(last_reload(served))
    assert [line.split()[1] for line in told] == ["1.0", "0.0", "1.0"]


def test_reloads_take_turns_so_that_the_last_one_counts(served: Served) -> None:
    """The first one is slow to read; the second must not be overtaken by what the first read."""
    goes_on, began = threading.Event(), threading.Event()
    reads: list[str] = []

    def draft() -> tuple[ServerConfig, list[Problem]]:
        reads.append("begin")
        began.set()
        assert goes_on.wait(10)
        grace_s = str(len(reads))
        reads.append("end")
        return draft_config({"grace_s": grace_s, "admin.key_sha256": digest(ADMIN)}, {"HOME": "/x"})

    object.__setattr__(served.context, "draft_config", draft)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(reload, served)
        assert began.wait(10)
        second = threads.submit(reload, served)
        assert until(lambda: bool(served.context.live.reloading._waiters))
        goes_on.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert reads == ["begin", "end"] * 2
    assert served.context.config.grace_s == 3.0


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_hangup_brings_new_keys_and_keeps_the_old_ones_when_the_file_is_bad(tmp_path: Path) -> None:
    keys, file = tmp_path / "keys.toml", tmp_path / "fenhe.toml"
    file.write_text(f'[keys]\nfile = "{keys}"\n')

    def write(key: str) -> None:
        keys.write_text(f'[[key]]\nname = "web"\nsha256 = "{digest(key)}"\n')

    write("fk-old")
    with run(grace_s=1, file=file) as running:

        def is_let_in(key: str) -> bool:
            answer = running.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            return answer.status_code == 200

        def reload_well() -> float:
            lines = running.http.get("/metrics").text.splitlines()
            return float(next(line.split()[1] for line in lines if line.startswith("fenhe_last_reload_successful ")))

        assert (is_let_in("fk-old"), is_let_in("fk-new")) == (True, False)
        keys.write_text("[[key]]\n")
        running.process.send_signal(signal.SIGHUP)
        assert until(lambda: reload_well() == 0.0)
        assert is_let_in("fk-old")
        write("fk-new")
        running.process.send_signal(signal.SIGHUP)
        assert until(lambda: is_let_in("fk-new"))
        assert (is_let_in("fk-old"), reload_well()) == (False, 1.0)


def test_commands_make_and_check(tmp_path: Path) -> None:
    def fenhe(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server.commands.cli", *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)

    made = fenhe("keys", "make", "web")
    key = made.stderr.splitlines()[-1]
    assert f'sha256 = "{digest(key)}"' in made.stdout
    assert key not in made.stdout  # which goes into the key file
    assert digest("fk-mine") in fenhe("keys", "hash", "web", given="fk-mine\n").stdout
    assert fenhe("keys", "hash", "web").returncode == 2
    keys, file = tmp_path / "keys.toml", tmp_path / "fenhe.toml"
    keys.write_text(made.stdout + fenhe("keys", "make", "batch").stdout)
    file.write_text(f'host = "0.0.0.0"\n[keys]\nfile = "{keys}"\n')
    checked = fenhe("config", "check", str(file))
    assert (checked.returncode, "API keys: 2" in checked.stdout) == (0, True)
    file.write_text('host = "0.0.0.0"\n')
    checked = fenhe("config", "check", str(file))
    assert (checked.returncode, "--keys-file" in checked.stderr) == (2, True)


def test_check_lists_the_mistakes_of_all_files_at_once(tmp_path: Path) -> None:
    keys, file = tmp_path / "keys.toml", tmp_path / "fenhe.toml"
    keys.write_text('[[key]]\nname = "a"\nsha256 = "x"\n[[key]]\nname = "b"\n')
    file.write_text(
        f"""
prot = 1
[limits]
max_prompts = 0
[admission]
max_queued_tokens = 0
[keys]
file = "{keys}"
max_concurrent = 0
[cors]
origins = ["page.example"]
[router]
classifier = "/nowhere/classifier"
[[student]]
folder = "/nowhere/student"
[[student]]
name = "auto"
"""
    )
    with pytest.raises(ConfigError) as caught:
        check(file, {})
    parts = (
        "prot: no such setting",
        "limits.max_prompts",
        "admission.max_queued_tokens",
        "keys.max_concurrent",
        "cors.origins",
        "'auto'",
        "key[0]",
        "key[1]",
        "/nowhere/student",
        "/nowhere/classifier",
    )
    assert len(caught.value.problems) == len(parts)
    for part in parts:
        assert [part in problem.said for problem in caught.value.problems].count(True) == 1, part


def test_check_names_students_that_would_share_a_name(tmp_path: Path, student: TinyStudent) -> None:
    (tmp_path / "a").mkdir()
    write_manifest(tmp_path / "a", student.manifest)
    file = tmp_path / "fenhe.toml"
    file.write_text(f'[[student]]\nfolder = "{tmp_path}/a"\n[[student]]\nname = "tiny"\nfolder = "{tmp_path}/a"\n')
    with pytest.raises(ConfigError, match="two students are called 'tiny'"):
        check(file, {})


def test_command_gives_every_mistake_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text("prot = 1\nhots = 2\n")
    assert main(["config", "check", str(file)]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("mistakes: 2")
    assert [line.split(": ")[1] for line in rest] == ["prot", "hots"]


def test_check_names_pins_for_paths_that_no_student_has(tmp_path: Path, student: TinyStudent) -> None:
    """Unless a student's paths are not known before it is opened, as the default one's."""
    (tmp_path / "a").mkdir()
    write_manifest(tmp_path / "a", student.manifest)
    file = tmp_path / "fenhe.toml"
    pins = '[online_quality.pins]\n"math.shallow" = "out"\n"legal.shalow" = "out"\n'
    file.write_text(f'{pins}[[student]]\nfolder = "{tmp_path}/a"\n')
    with pytest.raises(ConfigError) as caught:
        check(file, {})
    (problem,) = caught.value.problems
    assert "no student has a path 'shalow'; there are full, shallow" in problem.said
    file.write_text(f'{pins}[[student]]\nfolder = "{tmp_path}/a"\n[[student]]\n')
    assert "sound" in check(file, {})
