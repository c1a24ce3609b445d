"""Engine settings: defaults are sound and finite, and all mistakes are reported together."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from engines.config import EngineConfig


def test_config_defaults_are_sound() -> None:
    assert EngineConfig().problems() == []


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"max_running": 0}, "max_running must be at least 1, not 0"),
        ({"kv_bytes": 0}, "kv_bytes must be at least 1, not 0"),
        ({"weights_bytes": -1}, "weights_bytes must be at least 1, not -1"),
        ({"step_tokens": 0}, "step_tokens must be at least 4, not 0"),
        ({"busy_step_tokens": 0}, "busy_step_tokens must be at least 4, not 0"),
        ({"max_waiting": -1}, "max_waiting must be at least 0, not -1"),
        ({"prefix_cache_bytes": -1}, "prefix_cache_bytes must be at least 0, not -1"),
        ({"max_context_tokens": 1}, "max_context_tokens must be at least 2, not 1"),
        ({"num_threads": 0}, "num_threads must be at least 1, not 0"),
    ],
)
def test_config_names_what_is_wrong(values: dict[str, Any], problem: str) -> None:
    assert [str(one) for one in EngineConfig(**values).problems()] == [problem]


def test_config_reports_all_mistakes() -> None:
    assert len(EngineConfig(max_running=0, max_waiting=-1, num_threads=0).problems()) == 3


def test_config_allows_no_queue_and_no_prefix_cache() -> None:
    assert EngineConfig(max_waiting=0, prefix_cache_bytes=0).problems() == []


def test_config_is_frozen() -> None:
    config: Any = EngineConfig()
    for field in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, field.name, 1)
