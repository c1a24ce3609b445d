"""Chooses the precisions of a plan and its head: the configured ones, or by measuring, within a memory budget."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engines.config import EngineConfig
from engines.onnx.plan import PrecisionPlan, has_int8_kv, int8_kv_problem
from engines.onnx.speeds import speeds_of
from models.errors import ConfigError
from models.graphs.precisions import PRECISIONS, REMOVED, unknown_precisions
from models.student.folder import Student
from models.student.speeds import Speeds

logger = logging.getLogger(__name__)

AUTO = "auto"
ADAPTIVE = "adaptive"
MAX_LOSS = 0.03
"""Share of a step that the cheap head may cost with several rows; with one it must win."""


def choose_plan(student: Student, config: EngineConfig, num_threads: int, library: Path | None) -> PrecisionPlan:
    """Settle `config.precision`, `config.kv_precision` and `config.head` for this student on this machine.

    Raises: ConfigError when the student has no such variant or head, this machine cannot run it, none fits the budget,
    or KV cannot be kept as configured.
    """
    plan = replace(_precisions(student, config, num_threads, library), int8_kv=config.kv_precision == "int8")
    if plan.int8_kv:
        logger.info("kv kept in int8 student=%s plan=%r", student.manifest.name, plan.describe())
    if config.head == "exact":
        return plan
    has_head = all("cheap" in student.manifest.heads_at(variant) for variant in plan.variants)
    if config.head == "cheap" and not has_head:
        raise ConfigError(
            f"head cheap: student {student.manifest.name!r} has none at precision {plan.describe()!r}; build it with "
            "`fenhe build --head` at precision w8a8-native, or leave `head` out"
        )
    if not has_head:
        return plan
    if config.head == "cheap":
        return replace(plan, cheap_head=True)
    speeds = speeds_of(student, plan.variants, num_threads, library)
    return replace(plan, cheap_head=all(_pays(name, measured) for name, measured in speeds.items()))


def _pays(name: str, speeds: Speeds) -> bool:
    """Whether the cheap head is faster for one row and hardly slower for several.

    What it may lose is a share of a step on the shortest path: of a step on any other path it is less. Where both heads
    take as long, the noise of the measurement must not decide: the cheap one computes less.
    """
    exact, cheap = speeds.exact_head_s, speeds.cheap_head_s
    fewest, *more = sorted(cheap)
    lost = [(cheap[rows] - exact[rows]) / _step_s(speeds, rows) for rows in more]
    pays = cheap[fewest] < exact[fewest] and max(lost, default=0.0) <= MAX_LOSS
    measured = ", ".join(f"{rows} rows {exact[rows] * 1e3:.3g} -> {cheap[rows] * 1e3:.3g} ms" for rows in sorted(cheap))
    logger.info("head chosen precision=%s head=%s measured=%r", name, "cheap" if pays else "exact", measured)
    return pays


def _step_s(speeds: Speeds, rows: int) -> float:
    """Of a step of so many rows, or of the next smaller one that was measured."""
    return speeds.decode_step_s[max(measured for measured in speeds.decode_step_s if measured <= rows)]


def _precisions(student: Student, config: EngineConfig, num_threads: int, library: Path | None) -> PrecisionPlan:
    if config.precision not in (AUTO, ADAPTIVE):
        _check(student, config.precision, library)
        if config.kv_precision == "int8" and not has_int8_kv(config.precision):
            raise ConfigError(int8_kv_problem(config.precision))
        return PrecisionPlan(many=config.precision)
    names = [name for name in affordable(student, config.weights_bytes) if _can_run(name, library)]
    if not names:
        raise ConfigError(_why_none(student, config.weights_bytes, library))
    if config.kv_precision == "int8":
        names = _with_int8_kv(names, student, library)
    speeds = speeds_of(student, names, num_threads, library) if len(names) > 1 else {}
    plan = PrecisionPlan(many=min(names, key=lambda name: _cost(speeds, name, config.max_running)))
    if config.precision == ADAPTIVE:
        plan = _with_few(plan, student, speeds, config.weights_bytes)
        if not plan.few:
            logger.warning("adaptive precision found nothing faster for few rows plan=%r", plan.describe())
    logger.info("precision chosen plan=%r%s", plan.describe(), "".join(map(_describe_speed, speeds.items())))
    return plan


def _with_int8_kv(names: list[str], student: Student, library: Path | None) -> list[str]:
    """Raises: ConfigError where none of these precisions can keep its KV in int8."""
    able = [name for name in names if has_int8_kv(name)]
    if able:
        return able
    if library is None:
        raise ConfigError(
            "kv_precision int8 needs fenhe's own operators, which are not compiled here: install a C compiler, or a "
            "wheel that has them (`make wheel`), or leave `kv_precision` out"
        )
    raise ConfigError(
        f"kv_precision int8: no precision of student {student.manifest.name!r} that fits weights_bytes can, only "
        f"{', '.join(names)}; build it with `fenhe build --precision w8a8-native`, or leave `kv_precision` out"
    )


def _why_none(student: Student, weights_bytes: int, library: Path | None) -> str:
    said = f"no precision of student {student.manifest.name!r} can run here within weights_bytes={weights_bytes}"
    needed = {one.name: one.weight_bytes for one in student.manifest.variants if _can_run(one.name, library)}
    if not needed:
        built = ", ".join(one.name for one in student.manifest.variants)
        return (
            f"{said}: {built} need fenhe's own operators, which are not compiled here; install a C compiler, or a "
            "wheel that has them (`make wheel`)"
        )
    least = min(needed, key=lambda name: needed[name])
    return f"{said}: {least} takes {needed[least]}; allow as much with --weights-bytes {needed[least]}"


def _describe_speed(measured: tuple[str, Speeds]) -> str:
    """Such as ` w8a8="1 row 3.1 ms, 32 rows 9.8 ms, prompt token 0.21 ms"`, space included: one line lists several."""
    name, speeds = measured
    times = {f"{rows} row{'s' * (rows > 1)}": seconds for rows, seconds in sorted(speeds.decode_step_s.items())}
    times["prompt token"] = speeds.prefill_token_s
    return f' {name}="' + ", ".join(f"{what} {seconds * 1000:.3g} ms" for what, seconds in times.items()) + '"'


def affordable(student: Student, weights_bytes: int) -> list[str]:
    """The variants whose weights alone fit."""
    return [variant.name for variant in student.manifest.variants if variant.weight_bytes <= weights_bytes]


def _cost(speeds: Mapping[str, Speeds], name: str, max_running: int) -> float:
    """Seconds for one prompt token and one answer token in a full batch."""
    if name not in speeds:
        return 0.0
    return speeds[name].decode_token_s(max_running) + speeds[name].prefill_token_s


def _with_few(plan: PrecisionPlan, student: Student, speeds: Mapping[str, Speeds], weights_bytes: int) -> PrecisionPlan:
    """Add the fastest variant for few rows where it beats `many`, shares its KV and both fit the budget."""
    left_bytes = weights_bytes - student.manifest.variant(plan.many).weight_bytes
    sizes = {variant.name: variant.weight_bytes for variant in student.manifest.variants}
    rivals = [name for name in speeds if PRECISIONS[name].writer.kv_type == PRECISIONS[plan.many].writer.kv_type]
    few: list[tuple[int, str]] = []
    for num_rows in sorted(next(iter(speeds.values())).decode_step_s) if speeds else []:
        loaded = {plan.many, *(name for _, name in few)}
        fitting = [name for name in rivals if name in loaded or sizes[name] <= left_bytes]
        best = min(fitting, key=lambda name: speeds[name].decode_step_s[num_rows])
        if best == plan.many:
            break
        if best not in loaded:
            left_bytes -= sizes[best]
        few.append((num_rows, best))
    return PrecisionPlan(many=plan.many, few=tuple(few))


def _check(student: Student, name: str, library: Path | None) -> None:
    known = [variant.name for variant in student.manifest.variants]
    if name in REMOVED:
        raise ConfigError(f"precision: {unknown_precisions([name])}")
    if name not in known:
        raise ConfigError(
            f"student {student.manifest.name!r} has no precision {name!r}, only {', '.join(known)}; "
            "build it with `fenhe build --precision`"
        )
    if not _can_run(name, library):
        raise ConfigError(
            f"precision {name!r} needs fenhe's own operators, which are not compiled here: install a C compiler, "
            "or a wheel that has them (`make wheel`)"
        )


def _can_run(name: str, library: Path | None) -> bool:
    return name in PRECISIONS and (not PRECISIONS[name].needs_native or library is not None)
