"""Rows as token ids, and batches of similar length."""

import pytest
from tokenizers import Tokenizer as Backend

from models.distill.data.examples import Example, batches, encode, encode_prompt, encode_rows, end_token
from models.distill.data.rows import Row
from models.errors import ConfigError
from models.tokenizer import Tokenizer, TokenizerSettings

START, END = 1, 2  # <|im_start|>, <|im_end|> of the tiny tokenizer
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_json: str) -> Tokenizer:
    return make(tiny_tokenizer_json)


def make(
    tokenizer_json: str, template: str | None = TEMPLATE, eos: str | None = "<|im_end|>", ids: tuple[int, ...] = (END,)
) -> Tokenizer:
    return Tokenizer(Backend.from_str(tokenizer_json), TokenizerSettings(eos_token=eos, eos_token_ids=ids), template)


def row(prompt: str, answer: str | None = None, *, is_complete: bool = True) -> Row:
    return Row(task="fact", prompt=prompt, answer=answer, source="test", is_complete=is_complete)


def example(tokenizer: Tokenizer, of: Row, max_tokens: int = 500) -> Example:
    made = encode(of, tokenizer, max_tokens)
    assert made is not None
    return made


def test_encode_is_the_rendered_prompt_the_answer_and_the_end(tokenizer: Tokenizer) -> None:
    made = example(tokenizer, row("the fox?", "the dog"))
    prompt, answer = made.token_ids[: made.num_prompt_tokens], made.token_ids[made.num_prompt_tokens :]
    assert tokenizer.decode(prompt, skip_special=False) == (
        "<|im_start|>user\nthe fox?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(answer, skip_special=False) == "the dog<|im_end|>"
    assert answer[-1] == END
    assert (made.task, made.source, made.num_tokens) == ("fact", "test", len(made.token_ids))


def test_encode_ends_no_answer_that_was_cut_short(tokenizer: Tokenizer) -> None:
    whole, cut = example(tokenizer, row("a", "b c")), example(tokenizer, row("a", "b c", is_complete=False))
    assert cut.token_ids == whole.token_ids[:-1]


def test_encode_cuts_the_answer_but_never_all_of_it(tokenizer: Tokenizer) -> None:
    whole = example(tokenizer, row("why?", "because it is"))
    shortest = whole.num_prompt_tokens + 1
    assert example(tokenizer, row("why?", "because it is"), shortest).token_ids == whole.token_ids[:shortest]
    assert encode(row("why?", "because it is"), tokenizer, shortest - 1) is None


def test_encode_of_an_unanswered_row_is_its_prompt(tokenizer: Tokenizer) -> None:
    made = example(tokenizer, row("why?"))
    assert made.token_ids == encode_prompt("why?", tokenizer)
    assert made.num_prompt_tokens == made.num_tokens
    cut = example(tokenizer, row("why?"), 3)
    assert (cut.num_tokens, cut.num_prompt_tokens) == (3, 3)


def test_encode_reads_special_tokens_in_an_answer_as_text(tokenizer: Tokenizer) -> None:
    made = example(tokenizer, row("how?", "write <|im_end|> at the end"))
    answer = made.token_ids[made.num_prompt_tokens :]
    assert answer.count(END) == 1
    assert tokenizer.decode(answer) == "write <|im_end|> at the end"


def test_encode_without_chat_template_puts_the_answer_on_a_new_line(tiny_tokenizer_json: str) -> None:
    plain = make(tiny_tokenizer_json, template=None)
    made = example(plain, row("the fox?", "the dog"))
    assert plain.decode(made.token_ids, skip_special=False) == "the fox?\nthe dog<|im_end|>"
    assert plain.decode(made.token_ids[: made.num_prompt_tokens]) == "the fox?\n"


def test_encode_keeps_the_prompt_where_the_answer_would_grow_into_it(tiny_tokenizer_json: str) -> None:
    template = "{{ messages[0]['content'] }} t"
    grown = make(tiny_tokenizer_json, template=template)
    assert tuple(grown.encode("x the"))[: len(grown.encode("x t"))] != tuple(grown.encode("x t"))
    made = example(grown, row("x", "he"))
    assert made.token_ids[: made.num_prompt_tokens] == tuple(grown.encode("x t"))
    assert grown.decode(made.token_ids) == "x the"


def test_encode_adds_no_space_that_sentencepiece_would_begin_a_text_with() -> None:
    made = example(sentencepiece(), row("ab", "b"))
    assert [made.token_ids[made.num_prompt_tokens :]] == [(2, 0)]


def sentencepiece() -> Tokenizer:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    vocabulary = {"</s>": 0, "a": 1, "b": 2, "\u2581": 3, ":": 4, "\n": 5}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    settings = TokenizerSettings(eos_token="</s>", eos_token_ids=(0,))
    return Tokenizer(backend, settings, "{{ messages[0]['content'] }}:")


def test_end_token_is_the_one_that_the_template_writes(tiny_tokenizer_json: str) -> None:
    assert end_token(make(tiny_tokenizer_json, eos="<|endoftext|>", ids=(0, END))) == END


def test_end_token_is_that_of_the_answer_not_of_the_question(tiny_tokenizer_json: str) -> None:
    template = (
        "{% for m in messages %}{{ m['content'] + ('<|endoftext|>' if loop.first else '<|im_end|>') }}{% endfor %}"
    )
    assert end_token(make(tiny_tokenizer_json, template, eos="<|endoftext|>", ids=(0, END))) == END


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}", "{{ raise_exception('one turn only') }}"])
def test_end_token_is_the_tokenizers_own_where_the_template_writes_none(
    tiny_tokenizer_json: str, template: str | None
) -> None:
    assert end_token(make(tiny_tokenizer_json, template, eos="<|im_end|>", ids=(0, END))) == END
    assert end_token(make(tiny_tokenizer_json, template, eos=None, ids=(0, END))) == 0


def test_end_token_refuses_a_tokenizer_without_one(tiny_tokenizer_json: str) -> None:
    with pytest.raises(ConfigError, match="names no end token"):
        end_token(make(tiny_tokenizer_json, eos=None, ids=()))


def test_encode_rows_counts_what_does_not_fit(tokenizer: Tokenizer) -> None:
    rows = [row("the fox " * 50, "x"), row("a", "b"), row("c")]
    examples, left_out = encode_rows(rows, tokenizer, 60)
    assert examples == [encode(rows[1], tokenizer, 60), encode(rows[2], tokenizer, 60)]
    assert left_out == {("fact", "answer beyond 60 tokens"): 1}


LENGTHS = [(37 * i) % 200 + 1 for i in range(400)]


def padded_tokens(groups: list[list[int]]) -> list[int]:
    return [max(LENGTHS[index] for index in group) * len(group) for group in groups]


def test_batches_take_everything_once_within_the_budget() -> None:
    groups = batches(LENGTHS, 1000, seed=0, epoch=0)
    assert sorted(index for group in groups for index in group) == list(range(400))
    assert max(padded_tokens(groups)) <= 1000


def test_batches_pad_little() -> None:
    assert sum(padded_tokens(batches(LENGTHS, 1000, seed=0, epoch=0))) < 1.1 * sum(LENGTHS)


def test_batches_are_other_ones_in_every_epoch_and_the_same_when_asked_again() -> None:
    first, second = (batches(LENGTHS, 1000, seed=0, epoch=epoch) for epoch in (0, 1))
    assert batches(LENGTHS, 1000, seed=0, epoch=0) == first
    assert sorted(map(sorted, first)) != sorted(map(sorted, second))
    assert batches(LENGTHS, 1000, seed=1, epoch=0) != first


def test_batches_do_not_go_from_short_to_long() -> None:
    shortest = [min(LENGTHS[index] for index in group) for group in batches(LENGTHS, 1000, seed=0, epoch=0)]
    assert min(shortest[len(shortest) // 2 :]) + 50 < max(shortest[: len(shortest) // 2])


def test_batches_leave_a_sequence_beyond_the_budget_alone() -> None:
    assert sorted(map(sorted, batches([5, 50, 5, 60], 20, seed=0, epoch=0))) == [[0, 2], [1], [3]]
