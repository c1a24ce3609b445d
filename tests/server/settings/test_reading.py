"""Settings read: precedence, names, and all mistakes at once."""

from pathlib import Path

import pytest

from engines.config import EngineConfig
from models.errors import ConfigError
from server.settings.config import ConsoleConfig, RouterConfig, ServerConfig, StudentConfig
from server.settings.fields import flag_of, setting_names
from server.settings.reading import load_config


def defaults() -> ServerConfig:
    """What is served without any setting: all defaults, compiled operators and students in the cache."""
    return with_cache(Path.home() / ".cache" / "fenhe")


def with_cache(folder: Path) -> ServerConfig:
    return ServerConfig(
        engine=EngineConfig(native_folder=folder / "native"), console=ConsoleConfig(folders=(folder / "students",))
    )


def test_config_defaults_need_nothing() -> None:
    assert load_config({}, {}) == defaults()


def test_config_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text('host = "0.0.0.1"\nport = 1\ngrace_s = 1\n[limits]\nmax_prompts = 3\n[engine]\nmax_running = 4\n')
    environ = {"FENHE_PORT": "2", "FENHE_GRACE_S": "2.5", "FENHE_ENGINE__MAX_RUNNING": "5", "HOME": "/x"}
    config = load_config({"grace_s": "3", "student": "dir", "engine.precision": None}, environ, file)
    assert (config.host, config.port, config.grace_s) == ("0.0.0.1", 2, 3.0)
    assert (config.limits.max_prompts, config.engine.max_running) == (3, 5)
    assert config.student == (StudentConfig(folder=Path("dir")),)
    assert config.engine.precision == "auto"


def test_config_file_may_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text("port = 81")
    assert load_config({}, {"FENHE_CONFIG": str(file)}).port == 81


def test_config_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As some editors of Windows write it."""
    file = tmp_path / "fenhe.toml"
    file.write_text("port = 81", encoding="utf-8-sig")
    assert load_config({}, {}, file).port == 81


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
        "FENHE_API_KEY": "fk-a-client-s",
    }
    assert load_config({}, environ) == with_cache(Path("/models"))


def test_setting_flags_are_distinct() -> None:
    names = setting_names()
    assert {"port", "limits.max_requests", "engine.kv_bytes"} <= set(names)
    assert len({flag_of(name) for name in names}) == len(names)


def test_config_number_may_be_unset_by_text() -> None:
    assert load_config({}, {"FENHE_ENGINE__NUM_THREADS": "null"}).engine.num_threads is None
    assert load_config({}, {"FENHE_ACCESS_LOG": "true"}).access_log is True


def load_text(tmp_path: Path, text: str) -> ServerConfig:
    file = tmp_path / "fenhe.toml"
    file.write_text(text)
    return load_config({}, {}, file)


def test_config_student_is_a_folder_or_tables(tmp_path: Path) -> None:
    assert load_text(tmp_path, 'student = "a"').student == (StudentConfig(folder=Path("a")),)
    tables = '[[student]]\n[[student]]\nfolder = "b"\nname = "big"\ntasks = ["math", "legal"]\n'
    assert load_text(tmp_path, tables).student == (
        StudentConfig(),
        StudentConfig(folder=Path("b"), name="big", tasks=("math", "legal")),
    )


def test_config_student_flag_beats_tables(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text('[[student]]\nname = "x"\n[[student]]\nname = "y"\n')
    assert load_config({"student": "z"}, {}, file).student == (StudentConfig(folder=Path("z")),)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[[student]]\nname = "a"\n[[student]]\nname = "a"\n', ["two students are called 'a'"]),
        ('[[student]]\nname = "auto"\n', ["'auto'"]),
        ('[[student]]\nname = "a:b"\n', ["'a:b'"]),
        ('[[student]]\ntasks = ["maths"]\n[[student]]\nfoldr = "x"\n', ["student[0].tasks", "student[1].foldr"]),
        ("student = []", ["[[student]] tables"]),
        ("student = 5", ["[[student]] tables"]),
        ('[student]\nfolder = "x"\n', ["student.folder: no such setting"]),
        ("[router]\nfast = 0.99\n", ["router.fast_under_load, fast and balanced"]),
        ("[router]\nbalanced = 2\n", ["router.balanced = 2: must be from 0 to 1"]),
        ('[router]\nrule = "field"\n', ["router.rule"]),
        ("[router.max_own_perplexity]\nlaw = 1.2\n", ["router.max_own_perplexity.law"]),
        ("[router.min_information]\nfact = 2\n", ["router.min_information.fact"]),
        ("[router.min_retention]\nmaths = 1.0\n", ["router.min_retention.maths"]),
        ('[router.min_retention]\nmath = "high"\n', ["router.min_retention.math"]),
        ('[admin]\nkey_sha256 = "secret"\n', ["admin.key_sha256"]),
    ],
)
def test_config_refuses_by_name(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    for part in parts:
        assert part in caught.value.message


def test_config_lists_are_written_with_commas_where_only_text_can_be(tmp_path: Path) -> None:
    one, two = "a" * 64, "B" * 64
    assert load_config({}, {"FENHE_KEYS__SHA256": f"{one}, {two}"}).keys.sha256 == (one, two)
    assert load_config({"keys.sha256": one}, {}).keys.sha256 == (one,)
    text = f'[keys]\nsha256 = ["{one}", "{two}"]\n[cors]\norigins = ["https://x.org"]\n'
    config = load_text(tmp_path, text)
    assert (config.keys.sha256, config.cors.origins) == ((one, two), ("https://x.org",))


@pytest.mark.parametrize(
    "environ",
    [
        {"FENHE_KEYS__SHA256": "fk-the-key-itself"},
        {"FENHE_KEYS__SHA256": "a" * 64 + ",fk-the-key-itself"},
        {"FENHE_ADMIN__KEY_SHA256": "fk-the-key-itself"},
    ],
)
def test_config_never_shows_what_may_be_a_key(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({}, environ)
    assert next(iter(environ)) in caught.value.message
    assert "fk-the-key" not in caught.value.message


def test_config_tells_what_does_not_go_together_beside_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, "[router]\nfast = 0.99\nbusy_at = -1\nstep_down = 5\n[engine]\nmax_runing = 1\n")
    parts = ("engine.max_runing", "router.step_down", "fast_under_load, fast and balanced", "router.busy_at")
    assert [part for part in parts if part not in caught.value.message] == []
    assert len(caught.value.problems) == len(parts)


def test_config_says_nothing_of_defaults_that_stand_in_for_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, '[router]\nfast = "much"\nbalanced = 0.85\n')
    assert len(caught.value.problems) == 1


def test_config_names_the_setting_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, 'prot = 1\n[server]\nmax_body_bytes = 1\n[[student]]\nfoldr = "x"\n')
    told = caught.value.message
    for meant in ("did you mean port?", "did you mean limits.max_body_bytes?", "did you mean student[0].folder?"):
        assert meant in told


def test_config_router_table_has_the_policy_s_settings(tmp_path: Path) -> None:
    text = '[router]\nenabled = false\nclassifier = "c"\nfast = 0.85\n[router.min_retention]\nmath = 0.97\n'
    expected = RouterConfig(enabled=False, classifier=Path("c"), fast=0.85, min_retention={"math": 0.97})
    assert load_text(tmp_path, text).router == expected
    assert load_config({"router.fast": "0.85"}, {}).router.fast == 0.85
    environ = {"FENHE_ROUTER__MIN_RETENTION__MATH": "0.97"}
    assert load_config({}, environ).router.min_retention == {"math": 0.97}


def test_config_mistakes_name_their_settings(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text(
        "prot = 1\n[engine]\nstep_tokens = 3\n[router]\nfast = 0.99\n[router.min_retention]\nmaths = 1.0\n"
        '[[student]]\nname = "a"\n[[student]]\nname = "a"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_config({"grace_s": "soon"}, {"FENHE_LOG_LEVEL": "loud"}, file)
    assert [problem.setting for problem in caught.value.problems] == [
        "prot",
        "student[1].name",
        "grace_s",
        "log_level",
        "engine.step_tokens",
        "router.min_retention.maths",
        "router.fast_under_load",
    ]


def test_config_tells_what_is_wrong_with_every_entry_of_a_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, "[router.min_retention]\nmath = 2\ngeneral = 0.5\n")
    told = [problem.setting for problem in caught.value.problems]
    assert told == ["router.min_retention.math", "router.min_retention.general"]


def test_config_options_of_vllm_are_passed_on_by_its_own_names(tmp_path: Path) -> None:
    text = '[[student]]\nfolder = "a"\nengine = "vllm"\n[student.vllm]\ndtype = "bfloat16"\nenforce_eager = true\n'
    (student,) = load_text(tmp_path, text + "compilation_config.mode = 0\n").student
    assert student.engine == "vllm"
    assert student.vllm == {"dtype": "bfloat16", "enforce_eager": True, "compilation_config.mode": 0}


def test_config_an_engine_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\[0\]\.engine"):
        load_text(tmp_path, '[[student]]\nengine = "vlm"\n')


def test_config_pins_paths_by_task(tmp_path: Path) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text('[online_quality.pins]\n"legal.medium" = "out"\n"creative.wide" = "in"\n')
    config = load_config({}, {"FENHE_ONLINE_QUALITY__PINS__MATH__WIDE": "in"}, file)
    assert config.online_quality.pinned == {
        ("legal", "medium"): False,
        ("creative", "wide"): True,
        ("math", "wide"): True,
    }


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('[online_quality.pins]\n"cooking.wide" = "in"\n', "must be a task and a path, such as legal.wide"),
        ('[online_quality.pins]\n"legal" = "in"\n', "must be a task and a path, such as legal.wide"),
        ('[online_quality.pins]\n"legal.wide" = "off"\n', "must be one of in, out"),
        ("[online_quality]\nmin_samples = 100\n", "min_samples 100 is never reached with half_life_samples 32"),
        ("[online_quality.floors_under_load]\nmath = 0.9\n", "floors_under_load.math 0.9 is more than the floor"),
    ],
)
def test_config_refuses_online_quality_that_cannot_be(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "fenhe.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config({}, {}, file)
    assert part in caught.value.message
