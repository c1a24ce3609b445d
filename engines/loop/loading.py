"""Which stages of a student are in memory, and the thread that loads them, so that paths become servable one by one."""

import logging
import threading
import time
from collections.abc import Callable

from engines.contract import PathStatus, Runner
from engines.sequence import WhileLoading
from models.student.folder import HEAD
from models.student.manifest import Manifest

logger = logging.getLogger(__name__)

JOIN_S = 5.0


class Loading:
    """`on_loaded` is called after every stage, `on_failed` with the error that ended loading, both on its own thread.

    Once `is_over` returns True, no further stage is loaded.
    """

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        *,
        is_over: Callable[[], bool],
        on_loaded: Callable[[], None],
        on_failed: Callable[[Exception], None],
    ) -> None:
        self._manifest = manifest
        self._runner = runner
        self._is_over = is_over
        self._on_loaded = on_loaded
        self._on_failed = on_failed
        self._loaded: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self.run, name="fenhe-loader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait a while for the thread to end: exiting while a session is being made would abort the process."""
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def run(self) -> None:
        """Load in path order, so that the shallowest path is servable while the rest is read."""
        started_s = time.monotonic()
        try:
            for stage in (HEAD, *self._manifest.stage_order()):
                if self._is_over():
                    return
                self._runner.load(stage)
                self._loaded |= {stage}
                self._on_loaded()
                seconds = time.monotonic() - started_s
                logger.info("stage loaded student=%s stage=%s seconds=%.2f", self._manifest.name, stage, seconds)
        except Exception as error:
            logger.exception("loading failed student=%s", self._manifest.name)
            self._on_failed(error)

    def status(self, path: str) -> PathStatus:
        needed = {HEAD, *self._manifest.stages(self._manifest.path(path))}
        return PathStatus(
            path=path,
            num_loaded_stages=len(needed & self._loaded),
            num_stages=len(needed),
            is_default=path == self._manifest.full_path.name,
        )

    def resolve(self, path: str, while_loading: WhileLoading) -> str | None:
        """The path a sequence may take now: its own, a shallower one if it allows that, or None to wait."""
        if self.status(path).is_servable:
            return path
        if while_loading is WhileLoading.WAIT:
            return None
        ranks = self._manifest.path_ranks
        loaded = [name for name in ranks if self.status(name).is_servable]
        num_modules = len(self._manifest.path(path).modules)
        # The same modules with another exit are not a shallower path: that exit was trained for something else.
        shallower = [name for name in loaded if len(self._manifest.path(name).modules) < num_modules]
        return min(shallower, key=ranks.__getitem__, default=None)
