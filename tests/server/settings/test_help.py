"""What `fenhe serve --help` says about every setting."""

import argparse

import pytest

from server.settings.fields import find_fields, flag_of, setting_names
from server.settings.help import add_settings, describe, placeholder


def test_no_default_is_left_to_the_reader() -> None:
    for setting in find_fields():
        assert not describe(setting).endswith(("None)", "())", "{})")), setting.name


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("port", "N", "(default 8000)"),
        ("log_format", "{text,json}", "(default text)"),
        ("access_log", "{true,false}", "(default false)"),
        ("engine.kv_bytes", "BYTES", "(default 2147483648, 2 GiB)"),
        ("limits.max_url_bytes", "BYTES", "(default 8192, 8 KiB)"),
        ("engine.num_threads", "N", "(default: the cores it may use, or a container's CPU limit)"),
        ("limits.head_timeout_s", "SECONDS", "(default 15)"),
        ("admission.default_deadline_s", "SECONDS", "(default: that of --request-timeout-s)"),
        ("keys.sha256", "A,B", "(default: none)"),
        ("student", "PATH", "(default: the default student)"),
        ("host", "TEXT", "(default 127.0.0.1)"),
    ],
)
def test_setting_tells_what_it_takes_and_its_default(name: str, value: str, default: str) -> None:
    (setting,) = (one for one in find_fields() if one.name == name)
    assert placeholder(setting) == value
    assert describe(setting).endswith(default)


def test_help_has_every_option_under_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    parser = argparse.ArgumentParser(usage="x")
    add_settings(parser)
    text = parser.format_help()
    limits = text.partition("[limits]:")[2].partition("\n[")[0]
    assert "--max-body-bytes BYTES" in limits
    assert "--keys-file" not in limits
    for name in setting_names():
        assert f"  {flag_of(name)} " in text
