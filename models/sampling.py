"""How a model's authors recommend to sample from it: the record, and what of a file's values can be used for one.

Owns the ranges of these values, which are a request's own.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

logger = logging.getLogger(__name__)

Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
PositiveProbability = Annotated[float, Meta(gt=0.0, le=1.0)]
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=10.0)]
TopK = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
"""0 and -1: no limit."""


class RecommendedSampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a request that gives no value of its own is sampled with, field by field; None: nothing is recommended."""

    temperature: Temperature | None = None
    top_p: PositiveProbability | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None


def usable_sampling(values: Mapping[str, Any], names: Mapping[str, str], file: Path) -> RecommendedSampling | None:
    """What `values` recommend, where `names` has their name of each field; None when that is nothing.

    A null is no value. One of the wrong type or out of range is left out with a warning: a bad recommendation is no
    reason not to serve a model.
    """
    usable = {}
    for field, name in names.items():
        value = values.get(name)
        if value is not None and _is_usable(field, value, name, file):
            usable[field] = value
    return msgspec.convert(usable, RecommendedSampling) if usable else None


def _is_usable(field: str, value: Any, name: str, file: Path) -> bool:
    try:
        msgspec.convert(value, _KINDS[field])
    except msgspec.ValidationError as error:
        logger.warning("sampling value ignored file=%s key=%s value=%.60r error=%s", file, name, value, error)
        return False
    return True


_KINDS = get_type_hints(RecommendedSampling, include_extras=True)
