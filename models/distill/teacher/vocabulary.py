"""Checks that teacher and student mean the same by every token id, as distillation by logits needs. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from models.architecture import Architecture
from models.errors import ConfigError
from models.tokenizer import Tokenizer

PROBES = (
    "The quick brown fox doesn't jump over 2 lazy dogs.",
    "Der Müller überprüft naïve Façaden; ¿qué pasó?",
    "分合，天下大势；请问今天北京的天气怎么样？",
    "繁體字、かな、한국어",
    "def f(x: int) -> str:\n    return f'{x:>8}'  # {\"a\": [1, 2]}\n\tif (a != b) { i++; }",
    "3.14159 1,234,567 007 1e-9 2026-01-31 12345678901234567890",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e8\U0001f1f3 ❤\ufe0f",
    "  two  three   \n\n\n \t\t end \u00a0 \u3000 ",
    " leading space",
    "∑∫ √2 ≤ π \\frac{a}{b} $x^2$",
    "ABC \uff21\uff22\uff23 e\u0301 é",
    "<|im_start|>user\nhi<|im_end|><|endoftext|><s></s>[INST][/INST]<|eot_id|><unk><pad>",
)


class HasVocabulary(Protocol):
    """The parts of a `ModelSource` that are compared."""

    @property
    def name(self) -> str: ...

    @property
    def architecture(self) -> Architecture: ...

    def tokenizer(self) -> Tokenizer: ...


@dataclass(slots=True, kw_only=True, frozen=True)
class VocabularyMatch:
    """The ids below `shared_size` mean the same to both; logits are compared over those only."""

    teacher_size: int
    student_size: int
    shared_size: int

    @property
    def is_padded(self) -> bool:
        """Whether one of the two heads has rows that the other does not have."""
        return not self.teacher_size == self.student_size == self.shared_size


def compare_vocabularies(teacher: HasVocabulary, student: HasVocabulary) -> VocabularyMatch:
    """Compare the sizes in the model configs, the tokens, and how both tokenizers encode `PROBES`.

    Raises: ConfigError for a different tokenizer, with the first difference.
    """
    teacher_tokenizer, student_tokenizer = teacher.tokenizer(), student.tokenizer()
    difference = next(_differences(teacher_tokenizer, student_tokenizer), None)
    if difference is not None:
        raise ConfigError(
            f"teacher {teacher.name!r} and student {student.name!r} have different tokenizers: {difference}. Their "
            "logits cannot be compared token by token; choose a teacher of the student's family, or let the student "
            'learn from the text that the teacher writes: transfer = "sequence"'
        )
    sizes = (teacher.architecture.vocab_size, student.architecture.vocab_size)
    return VocabularyMatch(
        teacher_size=sizes[0],
        student_size=sizes[1],
        shared_size=min(*sizes, *_sizes_that_differ(teacher_tokenizer, student_tokenizer)),
    )


def _sizes_that_differ(teacher: Tokenizer, student: Tokenizer) -> tuple[int, ...]:
    """Both tokenizers' sizes where they differ: ids beyond the smaller one mean something only to the other."""
    return (teacher.vocab_size, student.vocab_size) if teacher.vocab_size != student.vocab_size else ()


def _differences(teacher: Tokenizer, student: Tokenizer) -> Iterator[str]:
    for probe in PROBES:
        one, other = teacher.encode(probe), student.encode(probe)
        if one != other:
            yield _encodings_differ(probe, one, other)
    for id in range(min(teacher.vocab_size, student.vocab_size)):
        one_bytes, other_bytes = teacher.token_bytes(id), student.token_bytes(id)
        # A special token has no bytes, and file formats disagree on which added tokens are special.
        if one_bytes and other_bytes and one_bytes != other_bytes:
            yield f"token {id} is {one_bytes!r} to the teacher and {other_bytes!r} to the student"


def _encodings_differ(probe: str, one: list[int], other: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return (
        f"{probe!r} is {len(one)} tokens to the teacher and {len(other)} to the student, different from token {at + 1} "
        f"on ({_from(one, at)} and {_from(other, at)})"
    )


def _from(ids: list[int], at: int) -> str:
    shown = ", ".join(map(str, ids[at : at + 4]))
    return f"[{shown}{', ...' if len(ids) > at + 4 else ''}]"
