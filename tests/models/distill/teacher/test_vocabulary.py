"""The guard against distilling between different tokenizers."""

import json
from dataclasses import dataclass

import pytest
from tokenizers import Tokenizer as Backend

from models.architecture import Architecture
from models.distill.teacher.vocabulary import compare_vocabularies
from models.errors import ConfigError
from models.tokenizer import Tokenizer, TokenizerSettings


@dataclass(frozen=True)
class Model:
    name: str
    tokenizer_json: str
    vocab_size: int = 320

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            family="llama",
            num_layers=1,
            hidden_size=8,
            intermediate_size=8,
            num_heads=1,
            num_kv_heads=1,
            head_dim=8,
            vocab_size=self.vocab_size,
            max_context_tokens=8,
            norm_eps=1e-5,
            rope_theta=1e4,
        )

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(Backend.from_str(self.tokenizer_json), TokenizerSettings(), None)


def test_compare_accepts_the_same_vocabulary(tiny_tokenizer_json: str) -> None:
    match = compare_vocabularies(Model("big", tiny_tokenizer_json), Model("small", tiny_tokenizer_json))
    assert (match.teacher_size, match.student_size, match.shared_size, match.is_padded) == (320, 320, 320, False)


@pytest.mark.parametrize("sizes", [(384, 320), (320, 384)])
def test_compare_shares_what_both_have_of_a_padded_vocabulary(tiny_tokenizer_json: str, sizes: tuple[int, int]) -> None:
    match = compare_vocabularies(
        Model("big", tiny_tokenizer_json, sizes[0]), Model("small", tiny_tokenizer_json, sizes[1])
    )
    assert (match.teacher_size, match.student_size, match.shared_size, match.is_padded) == (*sizes, 320, True)


def test_compare_shares_no_token_that_one_has_added(tiny_tokenizer_json: str) -> None:
    backend = Backend.from_str(tiny_tokenizer_json)
    backend.add_special_tokens(["<|tool|>"])
    match = compare_vocabularies(
        Model("big", tiny_tokenizer_json, 384), Model("small", backend.to_str(), vocab_size=384)
    )
    assert (match.shared_size, match.is_padded) == (320, True)


def test_compare_does_not_mind_which_added_tokens_are_special(tiny_tokenizer_json: str) -> None:
    description = json.loads(tiny_tokenizer_json)
    description["added_tokens"][1]["special"] = False
    other = Model("small", json.dumps(description))
    assert not compare_vocabularies(Model("big", tiny_tokenizer_json), other).is_padded


def without_merge(tokenizer_json: str, one: str, other: str) -> str:
    description = json.loads(tokenizer_json)
    description["model"]["merges"].remove([one, other])
    return json.dumps(description)


def test_compare_refuses_other_merges_and_shows_the_probe(tiny_tokenizer_json: str) -> None:
    other = without_merge(tiny_tokenizer_json, "\u0120", "qu")
    with pytest.raises(ConfigError) as caught:
        compare_vocabularies(Model("big", tiny_tokenizer_json), Model("small", other))
    message = str(caught.value)
    assert "teacher 'big' and student 'small' have different tokenizers" in message
    assert '"The quick brown fox doesn\'t jump over 2 lazy dogs." is ' in message
    assert 'transfer = "sequence"' in message


def swapped(tokenizer_json: str, one: str, other: str) -> str:
    description = json.loads(tokenizer_json)
    vocabulary = description["model"]["vocab"]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    return json.dumps(description)


def test_compare_refuses_swapped_tokens_that_no_probe_has(tiny_tokenizer_json: str) -> None:
    other = swapped(tiny_tokenizer_json, "\u0101", "\u0102")  # the bytes 0x01 and 0x02
    with pytest.raises(ConfigError, match=r"token \d+ is b'\\x01' to the teacher and b'\\x02' to the student"):
        compare_vocabularies(Model("big", tiny_tokenizer_json), Model("small", other))


def test_compare_refuses_a_special_token_that_only_one_knows(tiny_tokenizer_json: str) -> None:
    description = json.loads(tiny_tokenizer_json)
    for token in description["added_tokens"]:
        token["content"] = token["content"].replace("im_end", "other")
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = {token.replace("im_end", "other"): id for token, id in vocabulary.items()}
    with pytest.raises(ConfigError, match="im_end"):
        compare_vocabularies(Model("big", tiny_tokenizer_json), Model("small", json.dumps(description)))
