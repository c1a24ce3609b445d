"""`fenhe router` on a small scale: what it writes, and what it refuses before it works."""

from pathlib import Path

import msgspec
import pytest

from models.errors import ConfigError
from router.training.command import run
from tests.router.classifiers import classifier_settings, random_weights, write_file


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"text": "1 + 1", "label": "math", "lang": "en"}\n{"text": "hi", "label": "other", "lang": "en"}\n'
    )
    return file


def test_eval_prints_and_writes_figures(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = write_file(tmp_path / "c.safetensors", classifier_settings(), random_weights())
    assert run(["eval", str(rows), "--classifier", str(classifier), "--json", str(tmp_path / "out.json")]) == 0
    assert "macro_en" in capsys.readouterr().out
    body = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    assert body["sources"]["en math unnamed"]["rows"] == 1


def test_eval_of_a_missing_classifier_names_it(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no classifier at"):
        run(["eval", str(rows), "--classifier", str(tmp_path / "gone")])


def test_train_refuses_a_folder_before_it_works(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        run(["train", "--data", str(tmp_path / "none"), "--out", str(tmp_path)])


def test_train_without_data_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.jsonl"):
        run(["train", "--data", str(tmp_path), "--out", str(tmp_path / "new" / "c.safetensors")])
