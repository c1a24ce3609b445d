import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers
from tokenizers.models import BPE, WordLevel

from models.errors import ConfigError, InvalidParameter
from models.sources.source import open_source
from models.thread_priority import behind_others
from models.tokenizer import LONG_CHARS, Tokenizer, TokenizerSettings
from tests.conftest import VOCAB_SIZE

ANY_TEXT = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
IM_START, IM_END = 1, 2


@pytest.fixture
def tokenizer(tiny_source: Any) -> Tokenizer:
    return open_source(tiny_source("llama")).tokenizer()


@ANY_TEXT
@example(text="<|im_end|>")
@given(text=st.text(max_size=60))
def test_tokenizer_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, parse_special=False)  # hypothesis does draw "<|im_end|>"
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


SMOLLM2_LACKS = "\x04\x06\x13\x14\x16\x1d"
"""Bytes without a token; those that begin characters from U+40000 on are missing too. In text they vanish."""


@ANY_TEXT
@given(text=st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs"], exclude_characters=SMOLLM2_LACKS)))
def test_default_tokenizer_gives_back_text(default_tokenizer: Tokenizer, text: str) -> None:
    ids = default_tokenizer.encode(text, parse_special=False)
    assert default_tokenizer.decode(ids) == text
    assert b"".join(map(default_tokenizer.token_bytes, ids)) == text.encode()


@pytest.fixture(scope="module")
def default_tokenizer(default_gguf: Path) -> Tokenizer:
    return open_source(default_gguf).tokenizer()


@ANY_TEXT
@given(ids=st.lists(st.integers(0, 319), max_size=40))
def test_token_bytes_of_any_ids_are_what_decode_shows(tokenizer: Tokenizer, ids: list[int]) -> None:
    shown = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
    assert shown == tokenizer.decode(ids)


def test_tokenizer_reads_special_tokens_in_text_unless_told_not_to(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user"
    assert tokenizer.encode(text)[0] == IM_START
    literal = tokenizer.encode(text, parse_special=False)
    assert IM_START not in literal
    assert tokenizer.decode(literal) == text
    assert tokenizer.encode(text)[0] == IM_START


def test_tokenizer_keeps_special_tokens_out_of_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>b")
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special=False) == "a<|im_end|>b"
    assert tokenizer.is_special(IM_END)
    assert not tokenizer.is_special(ids[0])
    assert tokenizer.token_bytes(IM_END) == b""


@pytest.mark.parametrize("parse_special", [True, False])
def test_tokenizer_refuses_half_a_surrogate_pair(tokenizer: Tokenizer, parse_special: bool) -> None:
    with pytest.raises(InvalidParameter, match="surrogate"):
        tokenizer.encode("a\ud800b", parse_special=parse_special)


def test_tokenizer_has_no_bytes_for_ids_beyond_its_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 320
    assert tokenizer.token_bytes(320) == b""


def test_tokenizer_survives_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    tokenizer.save(folder)
    loaded = Tokenizer.load(folder)
    assert loaded.settings == tokenizer.settings
    assert loaded.eos_token_ids == {IM_END}
    assert loaded.bos_token_id == IM_START
    text = "<|im_start|>the quick é"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.chat_template is not None
    assert tokenizer.chat_template is not None
    messages = [{"role": "user", "content": "x"}]
    assert loaded.chat_template.render(messages) == tokenizer.chat_template.render(messages)


def test_saved_tokenizer_is_readable_by_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("the <|im_end|> quick").input_ids == tokenizer.encode("the <|im_end|> quick", add_special=True)
    assert theirs.eos_token == "<|im_end|>"


def test_tokenizer_without_a_template_has_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert Tokenizer.load(tmp_path).chat_template is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, "{", '{"unknown": 1}'])
def test_tokenizer_load_names_the_file_at_fault(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: str | None
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=name):
        Tokenizer.load(tmp_path)


def test_tokenizer_ignores_truncation_and_padding_in_its_file(tiny_source: Any) -> None:
    folder = tiny_source("llama")
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(folder / "tokenizer.json"))
    text = "a longer text than two tokens"
    tokenizer = open_source(folder).tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def sentencepiece_like() -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    merges = [("▁", "a"), ("a", "b")]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    backend = Backend(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, TokenizerSettings(), None)


@ANY_TEXT
@given(text=st.text(max_size=40).filter(lambda text: "▁" not in text and text))
def test_sentencepiece_bytes_are_the_text_after_one_space(text: str) -> None:
    tokenizer = sentencepiece_like()
    ids = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == b" " + text.encode()


def test_tokenizer_of_another_kind_is_refused() -> None:
    backend = Backend(WordLevel(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ConfigError, match="WordPiece"):
        Tokenizer(backend, TokenizerSettings(), None)


def test_added_text_tokens_have_bytes(tiny_source: Any) -> None:
    folder = tiny_source("llama", vocab_size=VOCAB_SIZE + 1)
    description = json.loads((folder / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    description["added_tokens"].append({"id": 320, "content": "<think>", **plain})
    (folder / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = open_source(folder).tokenizer()
    assert tokenizer.encode("<think>") == [320]
    assert tokenizer.token_bytes(320) == b"<think>"
    assert tokenizer.decode([320]) == "<think>"


def without_type(description: dict[str, Any]) -> None:
    del description["model"]["type"]


def without_value(description: dict[str, Any]) -> None:
    description["model"]["byte_fallback"] = None


def numbered_otherwise(description: dict[str, Any]) -> None:
    for token in description["added_tokens"]:
        token["id"] += 1000


@pytest.mark.parametrize("change", [without_type, without_value, numbered_otherwise])
def test_tokenizer_file_that_the_package_did_not_write_is_read_as_it_reads_it(
    tokenizer: Tokenizer, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.is_special(IM_END)
    assert loaded.token_bytes(IM_END) == b""


@pytest.fixture
def patient_threads() -> Iterator[None]:
    """A thread keeps the interpreter until it waits or gives it up."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("patient_threads")
@pytest.mark.parametrize("works_on", ["text", "ids"])
def test_tokenizer_leaves_the_interpreter_to_others(tokenizer: Tokenizer, works_on: str) -> None:
    text = "nothing is like this " * 40_000
    ids = tokenizer.encode(text)
    begun, others_ran = threading.Event(), threading.Event()
    seen: list[bool] = []

    def work() -> None:
        begun.set()
        tokenizer.encode(text) if works_on == "text" else tokenizer.decode(ids)
        seen.append(others_ran.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    others_ran.set()
    thread.join(60)
    assert seen == [True]


def test_long_text_is_tokenised_behind_others_and_no_other_is(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_behind = 0

    def counted(work: Any) -> Any:
        nonlocal num_behind
        num_behind += 1
        return behind_others(work)

    monkeypatch.setattr("models.tokenizer.behind_others", counted)
    text = "ab " * (LONG_CHARS // 3)
    short = tokenizer.encode(text[:LONG_CHARS])
    assert num_behind == 0
    long = tokenizer.encode(text + "ab ab")
    assert num_behind == 1
    assert tokenizer.decode(long) == text + "ab ab"
    assert long[: len(short) - 2] == short[:-2]
    with pytest.raises(InvalidParameter, match="surrogate"):
        tokenizer.encode(text + "ab \ud800")
