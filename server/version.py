"""Which fenhe this is."""

from importlib.metadata import PackageNotFoundError, version


def fenhe_version() -> str:
    try:
        return version("fenhe")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
