"""Model files as people have them: byte order marks, left-over indices, parts of splits, wrong ids, other spellings."""

import codecs
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from models.building.build import build_student
from models.errors import ConfigError, ServingError, WeightsError
from models.sources.gguf import GgufSource
from models.sources.huggingface import HuggingFaceSource
from models.sources.source import check_complete, open_source, path_to
from models.student.folder import Student
from tests.conftest import VOCAB_SIZE

SPLIT = {"max_shard_size": "100KB"}
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def mark(folder: Path, encoding: str) -> None:
    """Save every JSON file as an editor of Windows would, and a chat template and an index with them."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").write_text(settings.pop("chat_template"), encoding=encoding)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "eos_token_id": [0, 2]}))
    for file in folder.glob("*.json"):
        file.write_text(file.read_text(), encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("save", [None, SPLIT])
def test_files_with_a_byte_order_mark_are_read(tiny_source: Any, encoding: str, save: Any) -> None:
    plain, marked = open_source(tiny_source("llama", save=save)), tiny_source("llama", save=save)
    mark(marked, encoding)
    assert marked.joinpath("config.json").read_bytes()[:1] in (codecs.BOM_UTF8[:1], b"\xff")
    source = open_source(marked)
    check_complete(source)
    assert source.architecture == plain.architecture
    assert source.sampling is not None
    assert source.sampling.temperature == 0.5
    tokenizer, other = source.tokenizer(), plain.tokenizer()
    assert tokenizer.encode("the fox") == other.encode("the fox")
    assert tokenizer.eos_token_ids == {0, 2}
    assert tokenizer.chat_template is not None
    assert other.chat_template is not None
    assert tokenizer.chat_template.source == other.chat_template.source


@pytest.mark.parametrize("name", [*JSON_FILES, "chat_template.jinja"])
def test_file_in_another_coding_is_refused_by_name(tiny_source: Any, name: str) -> None:
    folder = tiny_source("llama")
    (folder / name).write_bytes('{"a": "ä"}'.encode("latin-1"))
    if name == "generation_config.json":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match=rf"{name} is not UTF-8: byte 7 is 0xe4"):
        open_source(folder).tokenizer()


def test_whole_file_is_taken_before_the_index_of_an_older_split(tiny_source: Any) -> None:
    folder = tiny_source("llama", save=SPLIT)
    tensors = {name: value for shard in folder.glob("*.safetensors") for name, value in load_file(shard).items()}
    save_file(tensors, folder / "model.safetensors")
    assert HuggingFaceSource(folder).files == (folder / "model.safetensors",)
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    source = HuggingFaceSource(folder)
    check_complete(source)
    assert source.files == (folder / "model.safetensors",)


def test_single_file_of_another_name_is_taken_where_the_split_is_gone(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    (folder / "model.safetensors").rename(folder / "merged.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    source = HuggingFaceSource(folder)
    check_complete(source)
    assert source.files == (folder / "merged.safetensors",)


def test_part_of_a_split_that_is_left_is_no_whole_file(tiny_source: Any) -> None:
    folder = tiny_source("llama", save=SPLIT)
    kept, *others = sorted(folder.glob("*.safetensors"))
    for other in others:
        other.unlink()
    with pytest.raises(WeightsError, match=others[0].name):
        HuggingFaceSource(folder)
    assert kept.exists()


@pytest.mark.parametrize("name", ["model.gguf", "MODEL.GGUF", "model.Gguf", "sha256-0123", "model.bin"])
def test_gguf_file_is_known_by_name_or_content(tiny_source: Any, tiny_gguf: Any, name: str, tmp_path: Path) -> None:
    file = tmp_path / "else" / name
    file.parent.mkdir()
    tiny_gguf(tiny_source("llama")).rename(file)
    source = open_source(file)
    assert isinstance(source, GgufSource)
    assert path_to(source) == file


@pytest.mark.parametrize("name", ["model.gguf", "MODEL.GGUF"])
@pytest.mark.parametrize("others", [(), ("README.md", "config.json", "tokenizer.json")])
def test_folder_of_one_gguf_file_is_that_file(
    tiny_source: Any, tiny_gguf: Any, name: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    tiny_gguf(tiny_source("llama")).rename(folder / name)
    for other in others:
        (folder / other).write_text("{}")
    source = open_source(folder)
    check_complete(source)
    assert source.files == (folder / name,)


def test_folder_of_several_gguf_files_is_refused_with_their_names(tmp_path: Path) -> None:
    for name in ("model-Q4.gguf", "model-Q8.GGUF"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"2 GGUF files; give one of them: model-Q4\.gguf, model-Q8\.GGUF"):
        open_source(tmp_path)


def test_folder_with_safetensors_beside_a_gguf_file_is_a_hugging_face_folder(tiny_source: Any, tiny_gguf: Any) -> None:
    folder = tiny_source("llama")
    tiny_gguf(folder).rename(folder / "model.gguf")
    source = open_source(folder)
    assert isinstance(source, HuggingFaceSource)
    assert path_to(source) == folder


@pytest.mark.parametrize("part", [0, 1, 2])
def test_part_of_a_split_gguf_file_is_told_apart(tmp_path: Path, part: int) -> None:
    """All parts but the first have nothing but these keys beside their tensors."""
    from gguf import GGUFWriter

    file = tmp_path / f"model-{part + 1:05}-of-00003.gguf"
    writer = GGUFWriter(file, "llama")
    if part:
        writer.kv_data[0].clear()
    writer.add_uint16("split.no", part)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=rf"part {part + 1} of 3 of a split model: .*llama-gguf-split --merge"):
        open_source(file)


def edit(folder: Path, name: str, **fields: Any) -> None:
    file = folder / name
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(found | fields))


@pytest.mark.parametrize("wrong", [VOCAB_SIZE, 10**6, -1, [VOCAB_SIZE, 10**6]])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_end_token_outside_the_vocabulary_is_refused(tiny_source: Any, name: str, wrong: Any) -> None:
    folder = tiny_source("llama")
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit(folder, "tokenizer_config.json", eos_token=None)
    edit(folder, "config.json", eos_token_id=None)
    edit(folder, name, eos_token_id=wrong)
    with pytest.raises(ConfigError, match=rf"{name}: eos_token_id .* outside the vocabulary of {VOCAB_SIZE}.*set it"):
        open_source(folder).tokenizer()


def test_end_token_outside_the_vocabulary_is_left_out_beside_another(
    tiny_source: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_source("llama")
    edit(folder, "config.json", eos_token_id=[2, VOCAB_SIZE])
    with caplog.at_level(logging.WARNING):
        build_student(folder, tmp_path / "student", precisions=("fp32",))
    assert Student.open(tmp_path / "student").tokenizer.eos_token_ids == {2}
    assert f"ids={VOCAB_SIZE}" in caplog.text


def test_end_token_of_a_gguf_file_outside_its_vocabulary_is_refused(tiny_source: Any, tiny_gguf: Any) -> None:
    file = tiny_gguf(tiny_source("llama"), metadata={"tokenizer.ggml.eot_token_id": VOCAB_SIZE})
    with pytest.raises(
        WeightsError, match=r"outside the vocabulary.*gguf-set-metadata FILE tokenizer\.ggml\.eot_token"
    ):
        open_source(file).tokenizer()


def add_token(folder: Path, text: str, *, special: bool, id: int = VOCAB_SIZE) -> None:
    """Add a token to a folder's tokenizer.json as transformers does."""
    description = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    description["added_tokens"].append({"id": id, "content": text, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(description))


@pytest.mark.parametrize("special", [False, True])
def test_tokenizer_larger_than_the_embedding_is_refused(tiny_source: Any, tmp_path: Path, special: bool) -> None:
    folder = tiny_source("llama")
    add_token(folder, "<|more|>", special=special)
    with pytest.raises(ConfigError, match=r"tokens up to 320 \('<\|more\|>'\).*has 320 rows.*resize_token_embeddings"):
        build_student(folder, tmp_path / "student", precisions=("fp32",))
    assert not (tmp_path / "student").exists()


def test_end_token_that_only_a_larger_tokenizer_has_is_the_tokenizer_s_fault(tiny_source: Any) -> None:
    folder = tiny_source("llama", eos_token_id=None)
    add_token(folder, "<|more|>", special=True)
    edit(folder, "tokenizer_config.json", eos_token="<|more|>")
    with pytest.raises(ConfigError, match="tokens up to 320"):
        open_source(folder).tokenizer()


def test_tokenizer_of_a_gguf_file_larger_than_the_embedding_is_refused(
    tiny_source: Any, tiny_gguf: Any, tmp_path: Path
) -> None:
    folder = tiny_source("llama", vocab_size=VOCAB_SIZE - 8)
    with pytest.raises(ConfigError, match=r"tokens up to 319 .*has 312 rows"):
        build_student(tiny_gguf(folder), tmp_path / "student", precisions=("fp32",))


def test_embedding_larger_than_the_tokenizer_is_padding(tiny_source: Any, tmp_path: Path) -> None:
    folder = tiny_source("llama", vocab_size=VOCAB_SIZE + 64)
    build_student(folder, tmp_path / "student", precisions=("fp32",))
    assert Student.open(tmp_path / "student").tokenizer.vocab_size == VOCAB_SIZE


def test_student_whose_tokenizer_grew_since_is_refused_before_it_is_served(tiny_source: Any, tmp_path: Path) -> None:
    """As one that an earlier version built."""
    student = tmp_path / "student"
    build_student(tiny_source("llama"), student, precisions=("fp32",))
    before = (student / "tokenizer.json").stat().st_size
    add_token(student, "<|more|>", special=True)
    manifest = (student / "manifest.json").read_text()
    after = (student / "tokenizer.json").stat().st_size
    (student / "manifest.json").write_text(manifest.replace(f": {before}", f": {after}"))
    with pytest.raises(ServingError, match="tokens up to 320"):
        Student.open(student, verify=False)
