"""The cut of a run: given by the config, or found by measuring the teacher's layers on some of the training text."""

import hashlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from models.distill.config import AUTO
from models.distill.cutting.boundaries import LayerAnalysis, analyse, choose_boundaries
from models.distill.cutting.boundary_picture import boundary_svg
from models.distill.data.examples import Example
from models.distill.network.decoder import Trunk, padded
from models.distill.work_folder import WorkFolder
from models.student.cut import parse_modules
from models.student.manifest import Module

logger = logging.getLogger(__name__)

MEASURED_EXAMPLES = 64
MEASURED_TOKENS = 160
"""Of each of those examples."""


def cut_modules(modules: str, analysis: LayerAnalysis, work: WorkFolder) -> tuple[Module, ...]:
    """Read a cut such as `knowledge:9,reasoning:21`, or choose one where `modules` is `auto`; draw its picture.

    Raises: ConfigError for a cut that cannot be read or does not fit the layers.
    """
    chosen = choose_boundaries(analysis) if modules == AUTO else parse_modules(modules, analysis.num_layers)
    work.boundary_picture.write_text(boundary_svg(analysis, chosen), encoding="utf-8")
    logger.info("cut modules=%s", ",".join(f"{module.name}:{module.num_layers}" for module in chosen))
    return chosen


def measure_layers(
    examples: Sequence[Example], source_sha256: str, open_trunk: Callable[[], Trunk], work: WorkFolder
) -> LayerAnalysis:
    """Block influence, angular distance and attention of every layer, on examples drawn by their content.

    Kept in the work folder; the trunk is opened only where nothing was kept.
    """
    drawn = sorted(examples, key=lambda example: hashlib.sha256(repr(example).encode()).digest())
    chosen = [example.token_ids[:MEASURED_TOKENS] for example in drawn[:MEASURED_EXAMPLES]]
    file = work.layer_analysis(hashlib.sha256(repr((source_sha256, chosen)).encode()).hexdigest()[:16])
    if file.exists():
        return msgspec.json.decode(file.read_bytes(), type=LayerAnalysis)
    analysis = analyse(open_trunk(), [padded([token_ids]) for token_ids in chosen])
    file.write_bytes(msgspec.json.encode(analysis))
    return analysis
