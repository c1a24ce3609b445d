"""`fenhe bench similar`: how often the semantic cache would be right, and how often it would give a wrong answer.

Recall: the share of paraphrases it takes for the same question. False hits: the share of near misses (one number, name,
negation or word apart) it takes for the same. Both are measured on the pairs that ship in bench/router/similar.toml, or
on those in `--pairs`; real traffic has other shares of either.
"""

import argparse
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from models.errors import ConfigError
from router.cache.similar import read_text, similarity

SHIPPED = Path(__file__).with_name("similar.toml")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)


class Pair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    a: str
    b: str
    kind: str = "same"


class Pairs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    same: list[Pair]
    different: list[Pair]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What a threshold does: shares of the pairs, and the kinds of near misses that pass."""

    threshold: float
    recall: float
    false_hits: float
    kinds: dict[str, int]


def read_pairs(file: Path = SHIPPED) -> Pairs:
    """Raises: ConfigError."""
    try:
        pairs = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Pairs)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not pairs.same or not pairs.different:
        raise ConfigError(f"{file}: needs pairs under `same` and under `different`")
    return pairs


def measure(pairs: Pairs, thresholds: Sequence[float] = THRESHOLDS) -> list[Row]:
    same = [_score(pair) for pair in pairs.same]
    different = [(_score(pair), pair.kind) for pair in pairs.different]
    rows = []
    for threshold in thresholds:
        kinds = Counter(kind for score, kind in different if score >= threshold)
        rows.append(
            Row(
                threshold=threshold,
                recall=sum(score >= threshold for score in same) / len(same),
                false_hits=kinds.total() / len(different),
                kinds=dict(kinds),
            )
        )
    return rows


def _score(pair: Pair) -> float:
    return similarity(read_text(pair.a), read_text(pair.b))


def render(rows: Sequence[Row], pairs: Pairs) -> str:
    lines = [
        f"{len(pairs.same)} paraphrases, {len(pairs.different)} near misses",
        "threshold  recall  false hits  of these kinds",
    ]
    for row in rows:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(row.kinds.items())) or "none"
        lines.append(f"{row.threshold:9.2f}  {row.recall:6.0%}  {row.false_hits:10.0%}  {kinds}")
    return "\n".join(lines)


def run(argv: Sequence[str]) -> int:
    """Measure and print. Raises: ConfigError."""
    parser = argparse.ArgumentParser(prog="fenhe bench similar", description=__doc__)
    parser.add_argument("--pairs", type=Path, default=SHIPPED, metavar="FILE.toml", help="default: those that ship")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(argv)
    pairs = read_pairs(options.pairs)
    rows = measure(pairs)
    print(msgspec.json.encode(rows).decode() if options.json else render(rows, pairs))
    return 0
