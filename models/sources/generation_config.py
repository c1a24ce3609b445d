"""Reads the sampling that a Hugging Face folder recommends, from its `generation_config.json`.

Source: vLLM, `ModelConfig.get_diff_sampling_param` (`--generation-config auto`), which takes the same five fields and
fills in each one that a request leaves out. Unlike it, `do_sample: false` is understood as transformers does
(`GenerationConfig`): the likeliest token each time. A file without `do_sample` says nothing about it.
"""

import logging
from pathlib import Path
from typing import Any

from models.errors import ConfigError
from models.sampling import RecommendedSampling, usable_sampling
from models.text_file import read_json

logger = logging.getLogger(__name__)

GENERATION_CONFIG_NAME = "generation_config.json"
_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_generation_config(folder: Path) -> RecommendedSampling | None:
    """None where there is no such file, or nothing in it that can be used; what cannot is named in a warning."""
    file = folder / GENERATION_CONFIG_NAME
    try:
        values = read_json(file, dict[str, Any])
    except FileNotFoundError:
        return None
    except (OSError, ConfigError) as error:
        logger.warning("recommended sampling ignored error=%s", error)
        return None
    if _is_greedy(values.get("do_sample"), file):
        values["temperature"] = 0.0
    return usable_sampling(values, {field: field for field in _FIELDS}, file)


def _is_greedy(do_sample: Any, file: Path) -> bool:
    if do_sample is not None and not isinstance(do_sample, bool):
        logger.warning(
            "sampling value ignored file=%s key=do_sample value=%.60r error=not true or false", file, do_sample
        )
    return do_sample is False
