"""Similar rows: found by MinHash over the prompts, and dropped, or kept on one side of the held-out split.

Everything is a function of the texts and their order, never of the process: the same rows give the same result.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.distill.data.rows import Row, Tally
from models.errors import ConfigError

NGRAM = 5
"""Characters in a shingle: a changed word changes about ten of them."""

NUM_BANDS, BAND_ROWS = 16, 3
"""Two texts of Jaccard similarity s become candidates with probability 1 - (1 - s^3)^16: 0.98 at 0.6.

Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.
"""

DUPLICATE_SIMILARITY = 0.8
SAME_SIDE_SIMILARITY = 0.6

Hashes = npt.NDArray[np.uint64]

_CHUNK_TEXTS = 2048


def normalised(text: str) -> str:
    """The text without what does not change its meaning: width forms, case, punctuation, runs of spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split()) or " ".join(folded.split())


def deduplicate(
    rows: Sequence[Row], *, similarity: float = DUPLICATE_SIMILARITY, against: Sequence[str] = ()
) -> tuple[list[Row], Tally]:
    """One row of every group with similar prompts: the first answered one, else the first.

    `against` are prompts of evaluation sets: rows that resemble one are dropped and counted separately.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index].answer is None)
    texts = [*against, *(rows[index].prompt for index in order)]
    kept, dropped = list[int](), Tally()
    stays = [True] * len(against)
    for position, earlier in enumerate(_similar_to_earlier(texts, similarity)):
        if position < len(against):
            continue
        twin = next((index for index in earlier if stays[index]), None)
        stays.append(twin is None)
        row = rows[order[position - len(against)]]
        if twin is None:
            kept.append(order[position - len(against)])
        else:
            dropped[row.task, _reason(texts[twin], row.prompt, twin < len(against))] += 1
    return [rows[index] for index in sorted(kept)], dropped


def _reason(twin: str, prompt: str, is_evaluation: bool) -> str:
    if is_evaluation:
        return "like an evaluation prompt"
    return "duplicate" if normalised(twin) == normalised(prompt) else "near-duplicate"


@dataclass(slots=True, kw_only=True, frozen=True)
class Split:
    """`left_out` are rows that resemble rows on both sides, and so fit neither."""

    training: list[Row]
    held_out: list[Row]
    left_out: list[Row]


def split_heldout(
    rows: Sequence[Row], share: float, seed: int = 0, *, similarity: float = SAME_SIDE_SIMILARITY
) -> Split:
    """Hold out a share of the rows, decided by a hash of each prompt; similar prompts follow the first of them.

    Rows that are added at the end do not change the side of earlier rows. Raises: ConfigError for a share of 1 or more.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"a held-out share of {share} leaves nothing to train on; give one from 0 to below 1")
    split = Split(training=[], held_out=[], left_out=[])
    sides = list[bool | None]()
    for row, earlier in zip(rows, _similar_to_earlier([row.prompt for row in rows], similarity), strict=True):
        taken = {sides[index] for index in earlier} - {None}
        if not taken:
            taken = {_unit_hash(row.prompt, seed) < share}
        sides.append(taken.pop() if len(taken) == 1 else None)
        {True: split.held_out, False: split.training, None: split.left_out}[sides[-1]].append(row)
    return split


def _unit_hash(prompt: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}/{normalised(prompt)}".encode("utf-8", "surrogatepass")).digest()
    return float(int.from_bytes(digest[:8], "big") / 2**64)


def _similar_to_earlier(texts: Sequence[str], similarity: float) -> Iterator[list[int]]:
    """For each text in turn the earlier ones that are at least that similar, in order."""
    buckets: dict[bytes, list[int]] = defaultdict(list)
    shingles = [_shingles(normalised(text)) for text in texts]
    for index, keys in enumerate(_band_keys(shingles)):
        candidates = sorted({other for key in keys for other in buckets.get(key, ())})
        yield [other for other in candidates if _jaccard(shingles[index], shingles[other], similarity) >= similarity]
        for key in keys:
            buckets[key].append(index)


def _jaccard(one: Hashes, other: Hashes, enough: float) -> float:
    """Shared shingles over all shingles of both; 0.0 at once where their numbers alone keep it below `enough`."""
    if min(len(one), len(other)) < enough * max(len(one), len(other)):
        return 0.0
    num_shared = len(one) + len(other) - len(np.union1d(one, other))
    return float(num_shared / (len(one) + len(other) - num_shared))


def _shingles(text: str) -> Hashes:
    """A hash of each run of `NGRAM` characters, each once, sorted. Shapes: [S], S >= 1."""
    codes = np.frombuffer(text.ljust(NGRAM).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    hashes = np.zeros(len(codes) - NGRAM + 1, dtype=np.uint64)
    for offset in range(NGRAM):
        hashes = hashes * np.uint64(0x100000001B3) + codes[offset : offset + len(hashes)]
    return np.unique(_scrambled(hashes))


def _scrambled(hashes: Hashes) -> Hashes:
    """Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), which spreads every bit over all."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _band_keys(shingles: Sequence[Hashes]) -> Iterator[list[bytes]]:
    """The names of the buckets that each text falls into."""
    for start in range(0, len(shingles), _CHUNK_TEXTS):
        chunk = shingles[start : start + _CHUNK_TEXTS]
        signatures = _signatures(chunk).reshape(len(chunk), NUM_BANDS, BAND_ROWS)
        for bands in signatures:
            yield [bytes([band]) + values.tobytes() for band, values in enumerate(bands)]


def _signatures(shingles: Sequence[Hashes]) -> Hashes:
    """MinHash: the smallest of each text's hashes under each of many hash functions. Shapes: [texts, bands * rows]."""
    joined = np.concatenate(shingles)
    starts = np.cumsum([0, *(len(hashes) for hashes in shingles[:-1])])
    salts = _scrambled(np.arange(1, NUM_BANDS * BAND_ROWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    columns = [np.minimum.reduceat(_stirred(joined, salt), starts) for salt in salts]
    return np.stack(columns, axis=1)


def _stirred(hashes: Hashes, salt: np.uint64) -> Hashes:
    mixed = (hashes ^ salt) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(32))
