"""A student with a cheap head made of its exact one: all but some logits get a fixed error, as if only previewed."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from models.student.folder import Student
from models.student.manifest import MANIFEST_NAME, CheapHead, Variant, find_problems
from tests.file_entries import entries_of

NUM_EXACT = 24
"""Tokens below this one are exact."""


def errors(vocab_size: int) -> npt.NDArray[np.float32]:
    """What the cheap head adds to each exact logit. Shapes: returns [vocab]."""
    found = np.random.default_rng(5).standard_normal(vocab_size).astype(np.float32)
    found[:NUM_EXACT] = 0.0
    return found


def with_cheap_head(student: Student, folder: Path) -> Student:
    """A copy of a student in `folder`, with a cheap head in every precision."""
    shutil.copytree(student.folder, folder)
    manifest = student.manifest
    manifest = msgspec.structs.replace(
        manifest,
        variants=tuple(_add_head(folder, variant, manifest.architecture.vocab_size) for variant in manifest.variants),
        cheap_head=CheapHead(rank=4, num_frequent=NUM_EXACT, num_candidates=8, sha256="0" * 64),
    )
    added = [entry for entry in entries_of(folder) if entry.name in {one.cheap_head for one in manifest.variants}]
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, *added))
    assert find_problems(manifest) == []
    (folder / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
    return Student.open(folder)


def _add_head(folder: Path, variant: Variant, vocab_size: int) -> Variant:
    name = f"cheap_{variant.head}"
    model = onnx.load(str(folder / variant.head), load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["exact" if output == "logits" else output for output in node.output]
    model.graph.initializer.append(numpy_helper.from_array(errors(vocab_size), "errors"))
    model.graph.node.append(helper.make_node("Add", ["exact", "errors"], ["logits"]))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / name))
    return msgspec.structs.replace(variant, cheap_head=name)
