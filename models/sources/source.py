"""A model in whatever file format it came: the seam between readers and builders.

Tensors are read one at a time, under the Hugging Face Llama names, as fp32.
"""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from models.architecture import Architecture
from models.errors import ConfigError, WeightsError, reason_of
from models.sampling import RecommendedSampling
from models.sources.gguf_blocks import Blocks, Bytes
from models.tokenizer import Tokenizer

MAX_NAMES_IN_MESSAGE = 8
GGUF_SUFFIX, GGUF_MAGIC = ".gguf", b"GGUF"


class BlockMatrix(Protocol):
    """A matrix that is read in blocks, some rows at a time. `is_exact`: as they are stored, nothing rounded."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def is_exact(self) -> bool: ...

    def read(self, first: int, end: int) -> Blocks:
        """Rows `first` to `end` (exclusive)."""
        ...


class StoredBlocks(BlockMatrix, Protocol):
    """A matrix of a file. `kind` is ggml's number of how it is stored."""

    @property
    def kind(self) -> int: ...

    @property
    def kind_name(self) -> str: ...

    def stored(self, first: int, end: int) -> Bytes:
        """Rows as the file has them. Shapes: returns [rows, bytes of a row]."""
        ...


@runtime_checkable
class BlockSource(Protocol):
    """A model that is stored in blocks."""

    def matrix(self, name: str) -> StoredBlocks:
        """Raises: WeightsError for a name that is not there."""
        ...


class ModelSource(Protocol):
    """Weights, architecture and tokenizer of one model. Peak memory: one tensor."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str:
        """As the model states it; "unknown" where it states none."""
        ...

    @property
    def sampling(self) -> RecommendedSampling | None:
        """How its files recommend to sample from it; None where they say nothing."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights files, in the order in which `sha256` reads them."""
        ...

    def sha256(self) -> str:
        """Hex digest of the weights files' contents, one after the other."""
        ...

    def tensor_names(self) -> frozenset[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor without reading it. Raises: WeightsError for a name that is not there."""
        ...

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A fresh copy of one tensor.

        Shapes: matrices are [out, in].
        Raises: WeightsError for a name that is not there, or an unsupported kind of tensor.
        """
        ...

    def tokenizer(self) -> Tokenizer: ...


def open_source(path: Path) -> ModelSource:
    """Open a GGUF file, a folder that holds one, or a Hugging Face folder.

    Raises: ConfigError for anything else, for files that cannot be read or an unsupported model, WeightsError for
    damaged files.
    """
    try:
        return _open(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {reason_of(error)}; make it readable for this user, or give another one"
        ) from error


def _open(path: Path) -> ModelSource:
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a GGUF file or a Hugging Face folder, or `fenhe pull` one")
    if not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path} is neither a file nor a folder; give a GGUF file or a Hugging Face folder")
    file = _only_gguf(path) if path.is_dir() else path
    if file is None:
        from models.sources.huggingface import HuggingFaceSource

        return HuggingFaceSource(path)
    if not is_gguf(file):
        raise ConfigError(f"{path} is neither a GGUF file nor a Hugging Face folder (config.json and *.safetensors)")
    from models.sources.gguf import GgufSource

    return GgufSource(file)


def path_to(source: ModelSource) -> Path:
    """What `open_source` opens to get this source again."""
    first = source.files[0]
    return first if is_gguf(first) else first.parent


def is_gguf(file: Path) -> bool:
    """By its name, in whatever case, or by its first bytes: some tools name their files by a digest."""
    if file.suffix.lower() == GGUF_SUFFIX:
        return True
    with file.open("rb") as stream:
        return stream.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds no other weights. Raises: ConfigError where there are several."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    found = [name for name in names if name.lower().endswith(GGUF_SUFFIX)]
    if not found or any(name.lower().endswith(".safetensors") for name in names):
        return None
    if len(found) > 1:
        raise ConfigError(f"{folder} has {len(found)} GGUF files; give one of them: {_listed(found)}")
    return folder / found[0]


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor a model of this architecture must have, with its shape."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (architecture.vocab_size, architecture.hidden_size),
        "model.norm.weight": (architecture.hidden_size,),
    }
    if not architecture.has_tied_head:
        shapes["lm_head.weight"] = (architecture.vocab_size, architecture.hidden_size)
    layer_shapes = _layer_shapes(architecture)
    for layer in range(architecture.num_layers):
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes.items()})
    return shapes


def _layer_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    q_size, kv_size, head_dim = architecture.q_size, architecture.kv_size, architecture.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_size, hidden),
        "self_attn.k_proj.weight": (kv_size, hidden),
        "self_attn.v_proj.weight": (kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, q_size),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if architecture.has_qkv_bias:
        shapes |= {"self_attn.q_proj.bias": (q_size,)}
        shapes |= {"self_attn.k_proj.bias": (kv_size,), "self_attn.v_proj.bias": (kv_size,)}
    if architecture.has_output_bias:
        shapes |= {"self_attn.o_proj.bias": (hidden,)}
    if architecture.has_qk_norm:
        shapes |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    return shapes


def check_complete(source: ModelSource) -> None:
    """Check the tensors against the architecture, before any is read.

    Raises: WeightsError that names missing, misshapen and unknown tensors together.
    """
    expected, present = expected_shapes(source.architecture), source.tensor_names()
    problems = []
    if missing := sorted(expected.keys() - present):
        problems.append(f"missing tensors: {_listed(missing)}")
    if unknown := sorted(present - expected.keys()):
        problems.append(f"unknown tensors: {_listed(unknown)}")
    misshapen = [
        f"{name} is {list(source.shape(name))}, not {list(shape)}"
        for name, shape in expected.items()
        if name in present and source.shape(name) != shape
    ]
    if misshapen:
        problems.append(f"misshapen tensors: {_listed(misshapen)}")
    if problems:
        raise WeightsError(f"{source.name} ({source.files[0]}) does not fit its architecture: " + "; ".join(problems))


def _listed(names: list[str]) -> str:
    rest = len(names) - MAX_NAMES_IN_MESSAGE
    return ", ".join(names[:MAX_NAMES_IN_MESSAGE]) + (f" and {rest} more" if rest > 0 else "")
