"""`fenhe inspect`: a student folder in words."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from models.architecture import Architecture
from models.graphs.precisions import PRECISIONS
from models.sampling import RecommendedSampling
from models.student.folder import Student
from models.student.manifest import CheapHead, Exit, Manifest, StudentPath, Width
from models.student.speeds import Speeds, read_speeds

MIB = 1 << 20


def describe(folder: Path) -> str:
    """Modules, paths, precisions, bytes and what was measured, as lines of text.

    Raises: ConfigError, WeightsError as `Student.open` does.
    """
    student = Student.open(folder)
    return "\n".join(_lines(student.manifest, folder))


def _lines(manifest: Manifest, folder: Path) -> Iterator[str]:
    size_bytes = sum(entry.size_bytes for entry in manifest.files)
    yield f"{manifest.name}: {folder}, {size_bytes / MIB:.0f} MiB in {len(manifest.files)} files"
    yield f"  from {manifest.source} (sha256 {manifest.source_sha256[:12]}..., licence {manifest.licence})"
    yield f"  {_shape(manifest.architecture)}"
    yield f"  recommended sampling: {_sampling(manifest.sampling)}"
    yield from ("", "modules")
    for module in manifest.modules:
        last = module.first_layer + module.num_layers - 1
        yield f"  {module.name:<14} layers {module.first_layer}-{last}"
    yield from ("", _exits_title(manifest))
    for exit in manifest.exits:
        yield f"  {exit.name:<14} behind {exit.after}: {_exit(manifest, exit)}"
    if manifest.widths:
        yield from ("", f"widths (file with sha256 {manifest.widths_sha256[:12]}...)")
        for width in manifest.widths:
            yield f"  {width.name:<14} {_width(manifest, width)}"
    yield from ("", "paths")
    for path in manifest.paths:
        yield f"  {path.name:<14} {_path(manifest, path)}"
    yield f"  shallowest by task: {', '.join(f'{task} -> {path}' for task, path in manifest.tasks.items())}"
    if manifest.cheap_head is not None:
        yield f"  {_cheap_head(manifest.cheap_head)}"
    yield from ("", "precisions")
    yield from _precisions(manifest, folder)
    yield from ("", "verdicts, fidelity / the field's, by task (docs/evaluation.md)")
    yield from _verdicts(manifest)
    yield from ("", "measured quality")
    if not manifest.quality:
        yield "  nothing measured"
    for figure in manifest.quality:
        yield (
            f"  {figure.path:<14} {figure.variant:<12} cross-entropy {figure.cross_entropy:.4f} nats per token "
            f"({figure.num_tokens} tokens of {figure.text})"
        )


def _shape(architecture: Architecture) -> str:
    return (
        f"{architecture.family}: {architecture.num_layers} layers, hidden {architecture.hidden_size}, "
        f"{architecture.num_heads} heads on {architecture.num_kv_heads} of {architecture.head_dim}, "
        f"vocabulary {architecture.vocab_size}, context {architecture.max_context_tokens}"
    )


def _sampling(sampling: RecommendedSampling | None) -> str:
    given = {} if sampling is None else msgspec.structs.asdict(sampling)
    named = [f"{name} {value:g}" for name, value in given.items() if value is not None]
    return ", ".join(named) or "none"


def _cheap_head(head: CheapHead) -> str:
    mean = "" if head.mean_candidates is None else f" (on average {head.mean_candidates:.0f})"
    exact = f"{head.num_frequent} frequent tokens and at most {head.num_candidates} others{mean} exact"
    return f"cheap head: rank {head.rank}, {exact}"


def _verdicts(manifest: Manifest) -> Iterator[str]:
    if not manifest.figures:
        yield "  nothing measured"
    rows: dict[tuple[str, str, str], list[str]] = {}
    for one in manifest.figures:
        said = f"{one.task} {one.verdict_fidelity} / {one.verdict_field}"
        rows.setdefault((one.path, one.head, one.variant), []).append(said)
    for (path, head, variant), tasks in rows.items():
        yield f"  {path:<14} {head:<6} {variant:<12} {', '.join(tasks)}"


def _exits_title(manifest: Manifest) -> str:
    if not manifest.exits_sha256:
        return "exits"
    return f"exits, trained (file with sha256 {manifest.exits_sha256[:12]}...)"


def _width(manifest: Manifest, width: Width) -> str:
    least, most = min(width.neurons), max(width.neurons)
    span = str(least) if least == most else f"{least} to {most}"
    own = "output matrices of feed-forward and attention" if width.has_own_output else "output matrices"
    return f"{span} of {manifest.architecture.intermediate_size} neurons in every layer, {own} of its own"


def _exit(manifest: Manifest, exit: Exit) -> str:
    if exit.is_plain and exit.after == manifest.modules[-1].name:
        return "the model's own end"
    parts = ["map"] if exit.has_map else []
    if exit.num_blocks:
        parts.append(_counted(exit.num_blocks, "block"))
    return f"{' + '.join([*parts, 'norm'])}, {'trained' if exit.is_trained else 'not trained'}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _path(manifest: Manifest, path: StudentPath) -> str:
    num_layers = sum(manifest.module(name).num_layers for name in path.modules)
    exit = manifest.exit(path.exit)
    blocks = f" and {_counted(exit.num_blocks, 'exit block')}" if exit.num_blocks else ""
    text = (
        f"{' > '.join(path.modules)} > {exit.name}, {num_layers} of {manifest.architecture.num_layers} layers{blocks}"
    )
    if path.width:
        text += f", width {path.width}"
    return text if exit.is_trained else f"{text}, exit not trained"


def _precisions(manifest: Manifest, folder: Path) -> Iterator[str]:
    kept = read_speeds(folder)
    for variant in manifest.variants:
        text = f"{variant.weight_bytes / MIB:.0f} MiB"
        if variant.name in PRECISIONS:
            text += f", {PRECISIONS[variant.name].description}"
        yield f"  {variant.name:<14} {text}"
        if kept is not None and variant.name in kept.variants:
            yield f"  {'':<14} {_speeds(kept.variants[variant.name])}"
    if kept is None:
        yield "  speeds: not measured here yet; `fenhe serve` with precision auto measures them"
    else:
        yield f"  speeds: shortest path on {kept.machine}"


def _speeds(speeds: Speeds) -> str:
    steps = ", ".join(f"{step_s * 1e3:.1f} ms at {rows}" for rows, step_s in sorted(speeds.decode_step_s.items()))
    return f"decode step by rows: {steps}; prompt {1 / speeds.prefill_token_s:.0f} tokens/s"
