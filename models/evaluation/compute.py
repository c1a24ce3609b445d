"""What a path costs: multiply-adds per token and bytes of weights."""

from models.architecture import Architecture
from models.student.folder import HEAD, Student
from models.student.manifest import Manifest, StudentPath

ATTENTION_CONTEXT_TOKENS = 1024
"""The context that is assumed where attention is counted as well."""


def layer_multiply_adds(architecture: Architecture, context_tokens: int = 0) -> int:
    """Multiply-adds of one layer for one token: its matrices, and attention over `context_tokens` keys and values."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    matrices = hidden * (2 * architecture.q_size + 2 * architecture.kv_size + 3 * inner)
    return matrices + 2 * architecture.q_size * context_tokens


def path_multiply_adds(manifest: Manifest, path: StudentPath, context_tokens: int = 0) -> int:
    """Multiply-adds of one token on a path, its exit and the head included; norms and look-ups count as nothing."""
    architecture = manifest.architecture
    head = architecture.hidden_size * architecture.vocab_size
    if manifest.exit(path.exit).has_map:
        head += architecture.hidden_size**2
    return manifest.num_layers_on(path) * layer_multiply_adds(architecture, context_tokens) + head


def compute_share(manifest: Manifest, path: StudentPath, context_tokens: int = 0) -> float:
    """A path's multiply-adds per token over the full path's."""
    full = path_multiply_adds(manifest, manifest.full_path, context_tokens)
    return path_multiply_adds(manifest, path, context_tokens) / full


def path_bytes(student: Student, path: StudentPath, variant: str) -> int:
    """Weights that a path needs at one precision: its modules, its exit and the head.

    The embedding table is left out: it is mapped, and a token reads one row of it.
    """
    import onnx

    files: set[str] = set()
    for stage in (*student.manifest.stages(path), HEAD):
        graph = onnx.load(str(student.graph(variant, stage)), load_external_data=False).graph
        for tensor in graph.initializer:
            files |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return sum((student.folder / name).stat().st_size for name in files)
