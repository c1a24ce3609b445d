"""Pins of the settings: which paths of which students they are about, and what is wrong with them."""

from collections.abc import Iterator, Mapping

from models.errors import Problem
from models.student.manifest import Manifest
from router.quality.config import OnlineQualityConfig
from router.quality.controller import Pin, Pinned


def settled_pins(config: OnlineQualityConfig, manifests: Mapping[str, Manifest]) -> dict[Pinned, Pin]:
    """For every student that has such a path, by its name."""
    return {
        Pinned(name, task, path): Pin(is_open=is_open, by="settings")
        for (task, path), is_open in config.pinned.items()
        for name, manifest in manifests.items()
        if _has(manifest, path) and (is_open or path != manifest.full_path.name)
    }


def pin_problems(config: OnlineQualityConfig, manifests: Mapping[str, Manifest]) -> Iterator[Problem]:
    """Pins that hold for none of these students."""
    known = sorted({path.name for manifest in manifests.values() for path in manifest.paths})
    for (task, path), is_open in config.pinned.items():
        having = [manifest for manifest in manifests.values() if _has(manifest, path)]
        setting = f"online_quality.pins.{task}.{path}"
        if not having:
            said = f"{setting}: no student has a path {path!r}; there are {', '.join(known) or 'none'}"
            yield Problem(setting=setting, said=said)
        elif not is_open and all(path == manifest.full_path.name for manifest in having):
            said = f"{setting}: the full path cannot be pinned out: all others are compared with it"
            yield Problem(setting=setting, said=said)


def _has(manifest: Manifest, path: str) -> bool:
    return any(one.name == path for one in manifest.paths)
