"""`fenhe router ...`: the commands of the classifier's training, which reads the rest of the line itself."""

from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Raises: ConfigError."""
    from router.training.command import run as train_or_judge

    return train_or_judge(arguments)
