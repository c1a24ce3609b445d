"""Rows as token ids, and the batches they are trained in. No torch."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.chat_template import ChatTemplate
from models.distill.data.rows import Row, Tally
from models.errors import BadRequest, ConfigError
from models.tokenizer import Tokenizer

LENGTH_STEP = 8
"""Units: tokens. Lengths that differ by less may share a batch, so that epochs do not repeat the same batches."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Example:
    """Prompt and answer as one sequence; the first `num_prompt_tokens` are the prompt."""

    task: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    source: str

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids of a user's message up to where the answer begins, as `fenhe serve` renders it.

    For a model without a chat template: the text and a line end.
    """
    text = _rendered(prompt, tokenizer)
    return tuple(tokenizer.encode(text, add_special=tokenizer.chat_template is None))


def _rendered(prompt: str, tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is None:
        return prompt + "\n"
    return tokenizer.chat_template.render([{"role": "user", "content": prompt}])


def end_token(tokenizer: Tokenizer) -> int:
    """The token that ends an answer: the end token that the chat template writes, or the tokenizer's own.

    Raises: ConfigError for a model that has none.
    """
    written = [] if tokenizer.chat_template is None else _closed_turn(tokenizer, tokenizer.chat_template)
    own = tokenizer.encode(tokenizer.settings.eos_token) if tokenizer.settings.eos_token else []
    ends = tokenizer.eos_token_ids
    candidates = [*reversed(written), *own, *tokenizer.settings.eos_token_ids]
    found = next((id for id in candidates if id in ends), None)
    if found is None:
        raise ConfigError("the teacher's tokenizer names no end token (eos_token_id), so answers cannot be ended")
    return found


def _closed_turn(tokenizer: Tokenizer, template: ChatTemplate) -> list[int]:
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    try:
        return tokenizer.encode(template.render(turns, add_generation_prompt=False))
    except BadRequest:
        return []


def encode(row: Row, tokenizer: Tokenizer, max_tokens: int) -> Example | None:
    """A row as an example of at most `max_tokens`; None when nothing of its answer would be left.

    A row without an answer is its prompt alone. Raises: ConfigError as `end_token` does.
    """
    return _encode(row, tokenizer, max_tokens, end_token(tokenizer))


def encode_rows(rows: Iterable[Row], tokenizer: Tokenizer, max_tokens: int) -> tuple[list[Example], Tally]:
    """Every row's example, and how many rows were left out because no token of their answer fitted.

    Raises: ConfigError as `end_token` does.
    """
    examples, left_out = [], Tally()
    end = end_token(tokenizer)
    for row in rows:
        example = _encode(row, tokenizer, max_tokens, end)
        if example is None:
            left_out[row.task, f"answer beyond {max_tokens} tokens"] += 1
        else:
            examples.append(example)
    return examples, left_out


def _encode(row: Row, tokenizer: Tokenizer, max_tokens: int, end: int) -> Example | None:
    prompt = encode_prompt(row.prompt, tokenizer)
    if row.answer is None:
        return _example(row, prompt[:max_tokens], min(len(prompt), max_tokens))
    if len(prompt) >= max_tokens:
        return None
    answer = _encode_answer(row.prompt, row.answer, prompt, tokenizer)
    ends = (end,) if row.is_complete else ()
    return _example(row, (*prompt, *answer, *ends)[:max_tokens], len(prompt))


def _example(row: Row, token_ids: tuple[int, ...], num_prompt_tokens: int) -> Example:
    return Example(task=row.task, token_ids=token_ids, num_prompt_tokens=num_prompt_tokens, source=row.source)


def _encode_answer(prompt_text: str, answer: str, prompt: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the answer as they follow the prompt's ids.

    Encoded together with the prompt, because sentencepiece would otherwise begin it with a space; on its own where
    tokens would span the two, or where the answer quotes a special token, which is text there.
    """
    text = _rendered(prompt_text, tokenizer) + answer
    together = tuple(tokenizer.encode(text, add_special=tokenizer.chat_template is None))
    rest = together[len(prompt) :]
    if together[: len(prompt)] == prompt and not any(map(tokenizer.is_special, rest)):
        return rest
    return tuple(tokenizer.encode(answer, parse_special=False))


def batches(lengths: Sequence[int], budget_tokens: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Indices in groups of similar length that take at most `budget_tokens` when padded; another order every epoch.

    A sequence longer than the budget is a batch of its own.
    """
    order = list(range(len(lengths)))
    shuffler = random.Random(f"{seed}/{epoch}")
    shuffler.shuffle(order)
    order.sort(key=lambda index: -(-lengths[index] // LENGTH_STEP))
    groups: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if not groups or longest * (len(groups[-1]) + 1) > budget_tokens:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    shuffler.shuffle(groups)
    return groups
