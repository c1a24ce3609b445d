"""What the grammar library says is wrong with a schema, in words for whoever sent it: its own are for its authors."""

import re
from dataclasses import dataclass

UNKNOWN = "the grammar library fails on it; write it in another way"
CONTRADICTION = "no value can meet all of its keywords"


@dataclass(slots=True, frozen=True)
class Explanation:
    """`is_mistake`: the schema itself is wrong, or no value can meet it; otherwise it asks for too much."""

    words: str
    is_mistake: bool = False


_EXPLAINED = tuple(
    (re.compile(pattern), Explanation(words, is_mistake))
    for pattern, words, is_mistake in (
        (r"nested parentheses|decimal literal", "a number in it is too large or too precise to be followed", False),
        (r"look-?around", "`pattern`: look-around and word boundaries are not supported", False),
        (r"backreferences", "`pattern`: back-references are not supported", False),
        (r"not disjoint", "`patternProperties`: one name can match two of the patterns, which is not supported", False),
        (r"regex parse error|invalid regex", "`pattern`: this regular expression cannot be followed", False),
        (
            r"^oneOf constraints",
            "`oneOf` is supported only where no value can match two of its parts; use `anyOf`",
            False,
        ),
        (r"^Unknown format", "`format`: this format is not supported", False),
        (r"(integer|float) range", "the bounds are too large or too precise to be followed", False),
        (r"(?i)multiple ?of", "`multipleOf`: this number cannot be followed", False),
        (
            r"min/maxProperties",
            "`minProperties` and `maxProperties` are supported only where all properties are required",
            False,
        ),
        (r"circular references", "`$ref` to what it stands in is supported only where it stands alone", False),
        (r"Unimplemented keys", "a keyword in it is not supported", False),
        (r"^Resource '|URI reference", "`$ref`: only references inside the schema are supported", False),
        (r"^Pointer '", "`$ref` leads nowhere", True),
        (r"^Unsatisfiable schema: min\w* \(.*greater than", "the minimum is greater than the maximum", True),
        (r"^Unsatisfiable schema: required", "a property in `required` is not allowed by the rest", True),
        (r"^Unsatisfiable schema|NoExtensionBias", CONTRADICTION, True),
        (r"^Invalid type|^type must", "`type` must be one of the types of JSON Schema", True),
        (r"^Expected|must be an?\b", "a keyword in it has a value of the wrong kind", True),
        (r"fuel|too (large|many|big|complex)|limit", "it is too large to be followed; make it simpler", False),
    )
)


_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
"""In the grammar's text, which the library was given and nobody else sees."""


def explain(problem: str) -> Explanation:
    """`problem` is in the library's words."""
    said = _PLACE.sub("", problem)
    return next((found for pattern, found in _EXPLAINED if pattern.search(said)), Explanation(UNKNOWN))
