"""`fenhe export --format vllm`: a student with its weights as a Hugging Face folder, whole or one path of it alone.

A whole student is for vLLM with fenhe's plug-in. One path alone is a plain checkpoint that any tool loads.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from engines.config import EngineConfig
from engines.vllm.form import served_form
from engines.vllm.options import model_config, student_form
from models.architecture import Architecture
from models.errors import ConfigError
from models.file_writing import naming
from models.graphs.widths import own_down, own_output
from models.sources.source import expected_shapes
from models.student.folder import Student
from models.student.hugging_face_folder import hugging_face_config, write_folder
from models.student.manifest import StudentPath
from models.student.stored_weights import StoredHead, StoredWeights

WEIGHTS_NAME = "model.safetensors"

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]


def export_student(folder: Path, out: Path) -> Student:
    """Every path, with the `fenhe` part in `config.json` that the plug-in reads. Peak memory: all weights in fp32.

    Raises: ConfigError for a student that vLLM cannot run, or when `out` is in the way; WeightsError.
    """
    student = Student.open(folder)
    form = student_form(student, EngineConfig())
    stored = StoredWeights(student)
    tensors: Tensors = {name: stored.read(name) for name in sorted(stored.tensor_names())}
    if form.head is not None:
        tensors |= StoredHead(student, stored.read).tensors()
    _write(out, lambda partial: write_folder(student, partial, model_config(student, form)), tensors)
    return student


def export_path(folder: Path, path: str, out: Path) -> Student:
    """One path as a plain checkpoint.

    Raises: ConfigError for a path that the student has not or whose form no plain checkpoint has, or when `out` is in
    the way; WeightsError.
    """
    student = Student.open(folder)
    named = _path_of(student, path)
    architecture = plain_architecture(student, named)
    stored = StoredWeights(student)
    config = hugging_face_config(architecture) | {"torch_dtype": "float32"}
    tensors = dict(_plain_tensors(student, named, stored, architecture))
    _write(out, lambda partial: write_folder(student, partial, config), tensors)
    return student


def plain_architecture(student: Student, path: StudentPath) -> Architecture:
    """The sizes of a plain model that computes what a path does. Raises: ConfigError where there is none."""
    manifest = student.manifest
    form = served_form(msgspec.structs.replace(manifest, paths=tuple({path, manifest.full_path}))).paths[path.name]
    neurons = {manifest.neurons(path, layer) for layer in range(form.num_layers)}
    if len(neurons) > 1:
        raise ConfigError(
            f"path {path.name!r} of student {manifest.name!r} has from {min(neurons)} to {max(neurons)} neurons in its "
            "layers: no plain checkpoint has layers of different sizes; export the whole student for vLLM"
        )
    return msgspec.structs.replace(manifest.architecture, num_layers=form.num_layers, intermediate_size=neurons.pop())


def _path_of(student: Student, name: str) -> StudentPath:
    try:
        return student.manifest.path(name)
    except KeyError:
        known = ", ".join(path.name for path in student.manifest.paths)
        raise ConfigError(f"student {student.manifest.name!r} has no path {name!r}, only {known}") from None


def _plain_tensors(
    student: Student, path: StudentPath, stored: StoredWeights, architecture: Architecture
) -> Iterator[tuple[str, Array]]:
    """The tensors of the plain model; the whole width has its neurons in the model's own order again."""
    rank = student.manifest.width_rank(path.width)
    own = stored.tensor_names()
    for name in sorted(expected_shapes(architecture)):
        values = stored.read(name)
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else 0
        if name.endswith("mlp.down_proj.weight"):
            values = stored.read(own_down(layer, rank)) if rank else _in_order(values.T, stored, layer).T
        elif name.endswith(("mlp.gate_proj.weight", "mlp.up_proj.weight")):
            values = values[: architecture.intermediate_size] if rank else _in_order(values, stored, layer)
        elif name.endswith("self_attn.o_proj.weight") and rank and own_output(layer, rank) in own:
            values = stored.read(own_output(layer, rank))
        yield name, np.ascontiguousarray(values)


def _in_order(values: Array, stored: StoredWeights, layer: int) -> Array:
    """Rows of neurons in the model's own order. Shapes: [intermediate, X], in and out."""
    places = stored.places(layer)
    return values if places is None else values[places]


def _write(out: Path, describe: Callable[[Path], None], tensors: Tensors) -> None:
    from safetensors.numpy import save_file

    if out.exists():
        raise ConfigError(f"{out} is in the way; remove it or choose another --out")
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        try:
            describe(partial)
            save_file(tensors, partial / WEIGHTS_NAME, metadata={"format": "pt"})
            partial.chmod(0o755)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
