"""What a path costs: multiply-adds per token and bytes of weights."""

from models.architecture import Architecture
from models.graphs.widths import is_read_at
from models.student.folder import HEAD, HEAD_STAGES, Student
from models.student.manifest import HeadKind, Manifest, StudentPath

ATTENTION_CONTEXT_TOKENS = 1024
"""The context that is assumed where attention is counted as well."""


def layer_multiply_adds(architecture: Architecture, context_tokens: int = 0) -> int:
    """Multiply-adds of one layer for one token: its matrices, and attention over `context_tokens` keys and values."""
    return architecture.layer_multiply_adds() + _attention_multiply_adds(architecture, context_tokens)


def _attention_multiply_adds(architecture: Architecture, context_tokens: int) -> int:
    return 2 * architecture.q_size * context_tokens


def head_multiply_adds(manifest: Manifest, head: HeadKind = "exact") -> int:
    """Multiply-adds of one token's logits; the cheap head's on average, or at most where no average was measured.

    The cheap head's are its preview's, and those of the tokens that it computes exactly.
    """
    hidden, vocab = manifest.architecture.hidden_size, manifest.architecture.vocab_size
    cheap = manifest.cheap_head
    if head == "exact" or cheap is None:
        return hidden * vocab
    num_candidates = cheap.num_candidates if cheap.mean_candidates is None else round(cheap.mean_candidates)
    return cheap.rank * (hidden + vocab) + (cheap.num_frequent + num_candidates) * hidden


def layers_multiply_adds(manifest: Manifest, path: StudentPath, context_tokens: int = 0) -> int:
    """Multiply-adds of one token on a path without the head, which is all that a prompt token needs."""
    architecture = manifest.architecture
    mapped = architecture.hidden_size**2 if manifest.exit(path.exit).has_map else 0
    attention = manifest.num_layers_on(path) * _attention_multiply_adds(architecture, context_tokens)
    return manifest.multiply_adds_on(path) + attention + mapped


def path_multiply_adds(manifest: Manifest, path: StudentPath, context_tokens: int = 0, head: HeadKind = "exact") -> int:
    """Multiply-adds of one answer token on a path, its exit and the head included; norms and look-ups count as
    nothing."""
    return layers_multiply_adds(manifest, path, context_tokens) + head_multiply_adds(manifest, head)


def compute_share(manifest: Manifest, path: StudentPath, context_tokens: int = 0, head: HeadKind = "exact") -> float:
    """An answer token's multiply-adds on a path over those of the full path with the exact head."""
    full = path_multiply_adds(manifest, manifest.full_path, context_tokens)
    return path_multiply_adds(manifest, path, context_tokens, head) / full


def request_multiply_adds(
    manifest: Manifest, path: StudentPath, head: HeadKind, *, num_prompt_tokens: int, num_answer_tokens: int
) -> int:
    """Multiply-adds of a whole request, attention left out: every token passes the layers, and only answer tokens
    need the head."""
    layers = layers_multiply_adds(manifest, path)
    return (num_prompt_tokens + num_answer_tokens) * layers + num_answer_tokens * head_multiply_adds(manifest, head)


def request_compute_share(
    manifest: Manifest, path: StudentPath, head: HeadKind, *, num_prompt_tokens: int, num_answer_tokens: int
) -> float:
    """A request's multiply-adds on a path over those on the full path with the exact head."""
    tokens = {"num_prompt_tokens": num_prompt_tokens, "num_answer_tokens": num_answer_tokens}
    full = request_multiply_adds(manifest, manifest.full_path, "exact", **tokens)
    return request_multiply_adds(manifest, path, head, **tokens) / full


def path_bytes(student: Student, path: StudentPath, variant: str, head: HeadKind = "exact") -> int:
    """Weights that a path needs at one precision: its modules at its width, its exit and the exact head; with the cheap
    head that too, since log-probabilities and penalties still take the exact one.

    The embedding table is left out: it is mapped, and a token reads one row of it.
    """
    import onnx

    manifest = student.manifest
    rank = manifest.width_rank(path.width)
    neurons = [manifest.neurons(path, layer) for layer in range(manifest.architecture.num_layers)]
    has_own_output = rank > 0 and manifest.widths[rank - 1].has_own_output
    places: dict[tuple[str, str], int] = {}
    read: set[tuple[str, str]] = set()
    for stage in {*manifest.stages(path), HEAD, HEAD_STAGES[head]}:
        graph = onnx.load(str(student.graph(variant, stage)), load_external_data=False).graph
        for tensor in graph.initializer:
            stored = {entry.key: entry.value for entry in tensor.external_data}
            if "location" not in stored:
                continue
            place = (stored["location"], stored["offset"])
            places[place] = int(stored["length"])
            if not manifest.widths or is_read_at(rank, tensor.name, neurons, has_own_output):
                read.add(place)
    num_unread_bytes = sum(length for place, length in places.items() if place not in read)
    return sum((student.folder / name).stat().st_size for name in {name for name, _ in places}) - num_unread_bytes
