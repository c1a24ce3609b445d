"""The student served when none is named: found in the cache, or pulled and built there first."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from models.building.progress import show_progress
from models.building.recommended_sampling import BY_SHA256
from models.building.source_content import ContentDigests
from models.checksums import sha256_of
from models.errors import ConfigError, WeightsError, reason_of
from models.graphs.precisions import DEFAULT_PRECISIONS, PRECISIONS
from models.sources.fetch import cache_folder, pull
from models.student.folder import Student
from models.student.manifest import MANIFEST_NAME, Manifest, Measured, read_manifest, write_manifest

DEFAULT_MODEL = "smollm2-135m"
PACKAGED = Path(__file__).parents[1] / "data"
"""May hold `smollm2-135m.exits.safetensors`, `smollm2-135m.head.safetensors` and `smollm2-135m.widths.safetensors`, and
what `fenhe eval` measured of them in `smollm2-135m.quality.json`."""


@dataclass(slots=True, kw_only=True, frozen=True)
class _Parts:
    """What this package adds to the model; None where it has no such file."""

    exits: Path | None
    head: Path | None
    widths: Path | None
    measured: Measured | None
    digests: ContentDigests

    def are_in(self, manifest: Manifest) -> bool:
        """Whether a student was built with these exits, this head and these widths."""
        head_sha256 = "" if manifest.cheap_head is None else manifest.cheap_head.sha256
        built_from = (manifest.exits_sha256, head_sha256, manifest.widths_sha256)
        return built_from == (self._sha256(self.exits), self._sha256(self.head), self._sha256(self.widths))

    def _sha256(self, file: Path | None) -> str:
        return "" if file is None else self.digests.of(file)


def find_student(
    environ: Mapping[str, str],
    report: Callable[[str], None],
    *,
    verify: bool = True,
    wanted: Callable[[], Sequence[str]] = lambda: (),
) -> Path:
    """The folder of the default student; `report` gets a line before anything that takes long.

    A student that is damaged, of another version, without a precision that is `wanted`, or with other exits, widths or
    another head than this package has is built again, and replaced only when the new one is complete. If it cannot be
    built, an old one that still opens is served. Processes that start together build it once. Without `verify` only
    missing and short files count as damage. Where nothing is wanted it is built for machines with and without a
    compiler.

    Raises: ConfigError when it cannot be fetched or built.
    """
    return _find(environ, report, verify, wanted)[0]


def open_default(
    environ: Mapping[str, str],
    report: Callable[[str], None],
    *,
    verify: bool = True,
    wanted: Callable[[], Sequence[str]] = lambda: (),
) -> Student:
    """What `find_student` finds, opened: once, where looking at it opened it.

    Raises: ConfigError as `find_student` does; what `Student.open` raises.
    """
    folder, student = _find(environ, report, verify, wanted)
    return student or Student.open(folder, verify=verify)


def _find(
    environ: Mapping[str, str], report: Callable[[str], None], verify: bool, wanted: Callable[[], Sequence[str]]
) -> tuple[Path, Student | None]:
    """The folder, and the student if it is as it was when it was opened."""
    cache = cache_folder(environ)
    folder = cache / "students" / DEFAULT_MODEL
    parts = _Parts(
        exits=_packaged("exits"),
        head=_packaged("head"),
        widths=_packaged("widths"),
        measured=_packaged_figures(),
        digests=ContentDigests(cache / "sources"),
    )
    names = tuple(wanted())
    student = _opened(folder, verify, lambda line: None)
    if student is not None and _is_current(student, parts, names):  # nothing to write: the cache may be read-only
        return folder, student
    from filelock import FileLock  # not for what is there already

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock")).acquire()
    except OSError as error:
        _serve_unchanged(folder, verify, error, report)
        return folder, None
    with lock:
        _bring_up_to_date(folder, cache, parts, names, verify, report)
    return folder, None


def _is_current(student: Student, parts: _Parts, wanted: Sequence[str]) -> bool:
    manifest = student.manifest
    if not parts.are_in(manifest) or _lacking(manifest, wanted):
        return False
    return (parts.measured is None or _has_figures(student.folder)) and not _lacks_sampling(manifest)


def _lacking(manifest: Manifest, wanted: Sequence[str]) -> list[str]:
    """The precisions that are not built."""
    return [name for name in wanted if name not in _built(manifest)]


def _built(manifest: Manifest) -> list[str]:
    return [variant.name for variant in manifest.variants if variant.name in PRECISIONS]


def _serve_unchanged(folder: Path, verify: bool, error: OSError, report: Callable[[str], None]) -> None:
    """Raises: ConfigError when there is nothing to serve in a folder that cannot be written."""
    if _opened(folder, verify, report) is None:
        raise _unwritable(folder, error) from error
    report(
        f"serving the {DEFAULT_MODEL} in {folder} as it is: it differs from this version's and cannot be replaced: "
        f"{reason_of(error)}"
    )


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{folder} holds no complete student, and none can be written there: {reason_of(error)}; make room or make it "
        "writable, set FENHE_CACHE to another folder, or name a student with --student"
    )


def _bring_up_to_date(
    folder: Path,
    cache: Path,
    parts: _Parts,
    wanted: Sequence[str],
    verify: bool,
    report: Callable[[str], None],
) -> None:
    student = _opened(folder, verify, report)
    manifest = None if student is None else student.manifest
    lacking = [] if manifest is None else _lacking(manifest, wanted)
    if manifest is not None and parts.are_in(manifest) and not lacking:
        _store_figures(folder, manifest, parts.measured, report)
        _store_sampling(folder, report)
        return
    precisions = tuple(wanted) or DEFAULT_PRECISIONS
    if manifest is not None and lacking:
        report(f"the {DEFAULT_MODEL} in {folder} was not built at {', '.join(lacking)}")
        precisions = tuple(dict.fromkeys((*_built(manifest), *wanted)))
    elif manifest is not None:
        report(f"the {DEFAULT_MODEL} in {folder} has other exits, widths or another head than this version of fenhe")
    try:
        _build(folder, cache, parts, precisions, report)
    except (ConfigError, WeightsError, OSError) as error:
        if manifest is None:
            raise _unwritable(folder, error) if isinstance(error, OSError) else error from None
        report(f"serving the earlier {DEFAULT_MODEL}, since a new one cannot be built: {error}")


def _build(folder: Path, cache: Path, parts: _Parts, precisions: Sequence[str], report: Callable[[str], None]) -> None:
    """Build beside `folder`, then replace it."""
    from models.building.build import build_student  # slow to import, and seldom needed

    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)  # of a build that was killed
    report(f"no student named; pulling {DEFAULT_MODEL} into {cache} (once)")
    source = pull(DEFAULT_MODEL, cache, show_progress=True)
    report(f"building {DEFAULT_MODEL} in {folder} (once)")
    with show_progress(report, DEFAULT_MODEL) as show:
        build_student(
            source,
            fresh,
            name=DEFAULT_MODEL,
            precisions=precisions,
            exits=parts.exits,
            head=parts.head,
            widths=parts.widths,
            measured=parts.measured,
            show=show,
        )
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
    _figures_mark(folder).write_text(_figures_sha256(), encoding="utf-8")


def _store_figures(folder: Path, manifest: Manifest, measured: Measured | None, report: Callable[[str], None]) -> None:
    """Replace the student's figures once by those that came with a newer package.

    What `fenhe eval` stores afterwards stays until a package has other figures.
    """
    if measured is None or _has_figures(folder):
        return
    try:
        if measured.exits_sha256 == manifest.exits_sha256:
            report(f"taking over what was measured of {DEFAULT_MODEL} from this version of fenhe")
            cheap_head = "" if manifest.cheap_head is None else manifest.cheap_head.sha256
            held = measured.of_paths(manifest.paths, manifest.widths_sha256)
            taken = msgspec.structs.replace(
                manifest,
                quality=held.quality,
                retention=held.retention,
                figures=held.figures_with(cheap_head),
            )
            write_manifest(folder, taken)
        _figures_mark(folder).write_text(_figures_sha256(), encoding="utf-8")
    except OSError as error:
        report(f"the figures of {DEFAULT_MODEL} in {folder} stay as they are: {reason_of(error)}")


def _lacks_sampling(manifest: Manifest) -> bool:
    """Whether it was built by a version that did not know how its authors recommend to sample from it."""
    return manifest.sampling is None and manifest.source_sha256 in BY_SHA256


def _store_sampling(folder: Path, report: Callable[[str], None]) -> None:
    manifest = read_manifest(folder)
    if not _lacks_sampling(manifest):
        return
    report(f"adding to {DEFAULT_MODEL} how its authors recommend to sample from it")
    try:
        write_manifest(folder, msgspec.structs.replace(manifest, sampling=BY_SHA256[manifest.source_sha256]))
    except OSError as error:
        report(f"{DEFAULT_MODEL} in {folder} stays without recommended sampling: {reason_of(error)}")


def _has_figures(folder: Path) -> bool:
    """Whether the student has been given the figures that are in the package."""
    mark = _figures_mark(folder)
    return mark.exists() and mark.read_text(encoding="utf-8") == _figures_sha256()


def _figures_mark(folder: Path) -> Path:
    """The file that records which packaged figures the student was given."""
    return folder.with_suffix(".figures")


def _figures_sha256() -> str:
    file = _figures_file()
    return sha256_of([file]) if file.exists() else ""


def _packaged(part: str) -> Path | None:
    file = PACKAGED / f"{DEFAULT_MODEL}.{part}.safetensors"
    return file if file.exists() else None


def _figures_file() -> Path:
    return PACKAGED / f"{DEFAULT_MODEL}.quality.json"


def _packaged_figures() -> Measured | None:
    file = _figures_file()
    if not file.exists():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=Measured)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} cannot be read: {error}; install fenhe again, or remove the file") from error


def _opened(folder: Path, verify: bool, report: Callable[[str], None]) -> Student | None:
    """A student that can be served; None when there is none. Which precision will serve is not known here, so every
    file must be whole."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    try:
        student = Student.open(folder, verify=verify)
        if verify:
            student.verify()
        return student
    except (ConfigError, WeightsError) as error:
        report(f"the student in {folder} cannot be used: {error}")
        return None
