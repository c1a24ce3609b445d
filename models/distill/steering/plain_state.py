"""State of the objects that steer a training run, as plain data (JSON) in a checkpoint, so that a resumed run goes on
as if it had never stopped."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from models.errors import ConfigError

S = TypeVar("S")


def blend(before: float, now: float, smoothing: float) -> float:
    """One step of an exponential moving average."""
    return smoothing * before + (1 - smoothing) * now


def smoothing_problems(smoothing: float) -> list[str]:
    return [] if 0 <= smoothing < 1 else [f"smoothing must be from 0 to below 1, not {smoothing}"]


def to_plain(state: object) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(state)
    return plain


def from_plain(state: Mapping[str, Any], kind: type[S]) -> S:
    """The inverse of `to_plain`. Raises: ConfigError for data of another form."""
    try:
        return msgspec.convert(state, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the checkpoint's weighting state cannot be read: {error}; start without --resume"
        ) from error


def require_same_names(what: str, loaded: Iterable[str], ours: Iterable[str]) -> None:
    """Raises: ConfigError when a checkpoint's names are not those of the config."""
    if set(loaded) != set(ours):
        raise ConfigError(
            f"the checkpoint was made with the {what} {', '.join(sorted(loaded))}, the config has "
            f"{', '.join(sorted(ours))}; restore the config or start without --resume"
        )
