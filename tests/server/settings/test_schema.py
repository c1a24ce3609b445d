"""The JSON Schema of a settings file: it takes what is read, and refuses what is refused."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from models.errors import ConfigError
from server.commands.cli import main
from server.settings.fields import find_fields
from server.settings.reading import load_config
from server.settings.schema import settings_schema

DOCS = Path(__file__).parents[3] / "docs"
OTHER_FILES = ({"key"}, {"teacher", "data", "out"})
"""What stands at the top of the other TOML files that the documentation shows: of keys and of a distillation."""


def mistakes(text: str) -> list[str]:
    validator = Draft202012Validator(settings_schema())
    return [error.message for error in validator.iter_errors(tomllib.loads(text))]


def examples() -> list[str]:
    found = [
        block
        for page in sorted(DOCS.glob("*.md"))
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        if set(tomllib.loads(block)) not in OTHER_FILES
    ]
    assert len(found) >= 3
    return found


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(settings_schema())


def test_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == settings_schema()


@pytest.mark.parametrize("text", examples())
def test_examples_of_the_documentation_are_valid(text: str, tmp_path: Path) -> None:
    assert mistakes(text) == []
    file = tmp_path / "fenhe.toml"
    file.write_text(text)
    load_config({}, {}, file)


def test_schema_has_every_setting_with_its_default() -> None:
    schema = settings_schema()
    for setting in find_fields():
        section, _, last = setting.name.rpartition(".")
        place = schema["properties"][section] if section else schema
        assert setting.meaning in place["properties"][last]["description"]
        if setting.unset is None:
            assert place["properties"][last]["default"] == setting.default


def defaults_written_out() -> str:
    """A file that sets everything to its default."""
    single, inner = "", ""
    for name, part in settings_schema()["properties"].items():
        single += f"{name} = {json.dumps(part['default'])}\n" if "default" in part else ""
        for last, one in part.get("properties", {}).items():
            inner += f"{name}.{last} = {json.dumps(one['default'])}\n" if "default" in one else ""
    return single + inner


def test_all_defaults_written_out_are_valid_and_change_nothing(tmp_path: Path) -> None:
    text = defaults_written_out()
    assert mistakes(text) == []
    file = tmp_path / "fenhe.toml"
    file.write_text(text)
    assert load_config({}, {"HOME": "/x"}, file) == load_config({}, {"HOME": "/x"})


@pytest.mark.parametrize(
    "text",
    [
        "prot = 1",
        'port = "80"',
        "port = 65536",
        "[limits]\nmax_promts = 3",
        "[engine]\nstep_tokens = 3",
        "[admission]\ndefault_deadline_s = 0",
        "[router.min_retention]\nmaths = 1.0",
        "[router.min_retention]\nmath = 1.1",
        "[[student]]\nfoldr = 'x'",
        "student = []",
        "student = 5",
        "[[student]]\ntasks = ['maths']",
        "[admin]\nkey_sha256 = 'x'",
        "log_level = 'loud'",
        "[cors]\norigins = ['https://a.b/']",
    ],
)
def test_schema_refuses_what_reading_refuses(text: str, tmp_path: Path) -> None:
    assert len(mistakes(text)) == 1
    file = tmp_path / "fenhe.toml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config({}, {}, file)
