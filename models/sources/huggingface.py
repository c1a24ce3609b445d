"""Reads a Hugging Face model folder as a `ModelSource`. safetensors only: pickled weights are programs."""

import re
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError
from models.sampling import RecommendedSampling
from models.sources.generation_config import read_generation_config
from models.sources.huggingface_config import CONFIG_NAME, read_config, to_architecture
from models.sources.huggingface_tokenizer import read_tokenizer
from models.sources.safetensors_file import SafetensorsFile
from models.text_file import read_json
from models.tokenizer import Tokenizer

SUFFIX = ".safetensors"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt"})

_HEAD = "lm_head.weight"
_DERIVED = re.compile(r"rotary_emb\.inv_freq$")
"""Buffers that old checkpoints carry and that follow from the config."""

_LICENCE_LINE = re.compile(r"^license:\s*(\S.*?)\s*$", re.MULTILINE)


class ShardIndex(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class HuggingFaceSource:
    """One folder. The weights stay on disk; `read` converts one tensor to fp32."""

    def __init__(self, folder: Path) -> None:
        """Raises: ConfigError for an unsupported model, WeightsError for damaged or missing files."""
        self._folder = folder
        self._config = read_config(folder)
        self.architecture = to_architecture(self._config, folder / CONFIG_NAME)
        self.name = folder.resolve().name.split("@")[0]
        self.files = find_weights(folder)
        self._shards = [SafetensorsFile(file) for file in self.files]
        self._shard_of = {name: shard for shard in self._shards for name in shard.tensors if self._is_wanted(name)}

    @cached_property
    def licence(self) -> str:
        """What the model card's front matter says."""
        card = self._folder / "README.md"
        if not card.exists():
            return "unknown"
        _, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
        found = _LICENCE_LINE.search(rest.partition("\n---")[0])
        return found[1].strip("'\"") if found else "unknown"

    @cached_property
    def sampling(self) -> RecommendedSampling | None:
        return read_generation_config(self._folder)

    def sha256(self) -> str:
        return sha256_of(self.files)

    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._shard_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shard(name).tensors[name].shape

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor in fp32. Shapes: matrices are [out, in]. Raises: WeightsError as `ModelSource.read` does."""
        return self._shard(name).read(name)

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._folder, self._config)

    def _shard(self, name: str) -> SafetensorsFile:
        try:
            return self._shard_of[name]
        except KeyError:
            raise WeightsError(f"{self._folder} has no tensor {name}") from None

    def _is_wanted(self, name: str) -> bool:
        is_copy_of_embedding = name == _HEAD and self.architecture.has_tied_head
        return not is_copy_of_embedding and not _DERIVED.search(name)


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the model. A whole file beside the index of a split is taken before it, as
    transformers does; so is any single file beside the index of a split that is not there.

    Raises: ConfigError where there are none or it is not clear which, WeightsError for a missing shard.
    """
    if (folder / WEIGHTS_NAME).exists():
        return (folder / WEIGHTS_NAME,)
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() == SUFFIX)
    if (folder / INDEX_NAME).exists():
        shards = _indexed_shards(folder)
        is_left_over = len(found) == 1 and found[0] not in shards
        return (found[0],) if is_left_over else _all_there(folder, shards)
    if len(found) == 1:
        return (found[0],)
    if found:
        raise ConfigError(f"{folder} has {len(found)} safetensors files but no {INDEX_NAME} to say how they belong")
    if any(file.suffix in PICKLE_SUFFIXES for file in folder.iterdir()):
        raise ConfigError(
            f"{folder} has only pickled weights, which can run code when read; "
            "convert them with transformers: save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise ConfigError(f"{folder} has no *.safetensors files")


def _indexed_shards(folder: Path) -> tuple[Path, ...]:
    index = folder / INDEX_NAME
    names = sorted(set(read_json(index, ShardIndex).weight_map.values()))
    if not names or any(Path(name).name != name for name in names):
        raise WeightsError(f"{index} names no files, or files outside its folder")
    return tuple(folder / name for name in names)


def _all_there(folder: Path, shards: tuple[Path, ...]) -> tuple[Path, ...]:
    if missing := [shard.name for shard in shards if not shard.exists()]:
        raise WeightsError(f"{folder} is incomplete: {', '.join(missing)} missing; fetch it again")
    return shards
