"""`fenhe router ...`: the rest of the line belongs to the classifier's training."""

from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Raises: ConfigError."""
    from router.training.command import run as train_or_judge

    return train_or_judge(arguments)
