"""Loads a student's weights from its own folder into a model of vLLM's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from models.student.folder import Student
from models.student.stored_weights import StoredHead, StoredWeights

LOAD_FORMAT = "fenhe"
FOLDER_KEY = "student"
"""In `model_loader_extra_config`: the student's folder."""


@register_model_loader(LOAD_FORMAT)
class StudentLoader(BaseModelLoader):
    """`load_format="fenhe"`."""

    def download_model(self, model_config: Any) -> None:
        """The folder is here."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        student = Student.open(Path(self.load_config.model_loader_extra_config[FOLDER_KEY]))
        model.load_weights(student_tensors(student, with_head=model.cheap_head is not None))


def student_tensors(student: Student, *, with_head: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a student, one at a time, in fp32."""
    stored = StoredWeights(student)
    for name in sorted(stored.tensor_names()):
        yield name, torch.from_numpy(np.require(stored.read(name), requirements=["C", "W"]))
    if with_head:
        for name, values in StoredHead(student, stored.read).tensors().items():
            yield name, torch.from_numpy(values)
