"""What vLLM calls in each of its processes, by the entry point `vllm.general_plugins`."""

from engines.vllm.form import ARCHITECTURES


def register() -> None:
    """Make our models and the loader of their weights known to vLLM. May be called again."""
    from vllm.model_executor.models import ModelRegistry

    import engines.vllm.loader  # noqa: F401

    known = ModelRegistry.get_supported_archs()
    for architecture in ARCHITECTURES.values():
        if architecture not in known:
            ModelRegistry.register_model(architecture, f"engines.vllm.models:{architecture}")
