"""Whether students can keep their KV as `engine.kv_precision` says, as far as settings alone tell."""

from collections.abc import Iterator

from engines.onnx.plan import has_int8_kv, int8_kv_problem
from models.errors import Problem
from models.graphs.precisions import PRECISIONS
from server.settings.config import ServerConfig

SETTING = "engine.kv_precision"


def kv_precision_problems(config: ServerConfig) -> list[Problem]:
    """What cannot be honoured. A remote student beside others is none: upstreams keep its KV."""
    return list(_problems(config)) if config.engine.kv_precision == "int8" else []


def _problems(config: ServerConfig) -> Iterator[Problem]:
    precision, students = config.engine.precision, config.student
    if precision in PRECISIONS and not has_int8_kv(precision):
        yield Problem(setting=SETTING, others=("engine.precision",), said=f"engine.{int8_kv_problem(precision)}")
    for index, student in enumerate(students):
        if student.engine == "vllm":
            said = (
                'engine.kv_precision int8: vLLM keeps the KV of a student with engine = "vllm"; leave kv_precision '
                "out, or set vLLM's own option, kv_cache_dtype in [student.vllm]"
            )
            yield Problem(setting=SETTING, others=(f"student[{index}].engine",), said=said)
    if students and all(student.engine == "remote" for student in students):
        said = "engine.kv_precision int8: upstreams keep the KV of remote students; leave kv_precision out"
        yield Problem(setting=SETTING, others=("student",), said=said)
