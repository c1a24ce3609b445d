"""Compiled grammars of one student: made in a thread of their own and kept for the next request.

Owned by the loop; only compiling itself happens elsewhere. Bounded in number, in time and, by the library, in size.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from engines.grammar import Grammar, GrammarCompiler
from models.errors import InvalidParameter

MAX_GRAMMARS = 128
"""Kept per student: a few hundred KB each for ordinary schemas."""

MakeCompiler = Callable[[], GrammarCompiler]


class Grammars:
    """`make_compiler` is called in the thread, at the first grammar: it reads the whole vocabulary."""

    def __init__(self, make_compiler: MakeCompiler, max_grammars: int = MAX_GRAMMARS) -> None:
        self._make_compiler = make_compiler
        self._max_grammars = max_grammars
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._running: dict[str, asyncio.Task[Grammar]] = {}
        self._compiler: GrammarCompiler | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def compile(self, source: str, check: Callable[[], None], timeout_s: float) -> Grammar:
        """Compile a grammar from its text. `check` runs first, in the same thread, and raises if something is wrong.

        Raises: what `check` raises; InvalidParameter when it cannot be compiled, or not in time.
        """
        kept = self._kept.get(source)
        if kept is not None:
            self._kept.move_to_end(source)
            return kept
        task = self._running.get(source)
        if task is None:
            task = self._running[source] = asyncio.get_running_loop().create_task(self._run(source, check))
            task.add_done_callback(lambda done: self._finish(source, done))
        try:
            # Shielded: others may wait for the same grammar, and the result is kept for the next try.
            return await asyncio.wait_for(asyncio.shield(task), timeout_s)
        except TimeoutError:
            raise InvalidParameter(
                f"the schema took longer than {timeout_s:g} s to compile (limits.grammar_timeout_s); make it simpler"
            ) from None

    async def _run(self, source: str, check: Callable[[], None]) -> Grammar:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fenhe-grammar")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, source, check)

    def _compile(self, source: str, check: Callable[[], None]) -> Grammar:
        check()
        if self._compiler is None:
            self._compiler = self._make_compiler()
        return self._compiler.compile(source)

    def _finish(self, source: str, task: asyncio.Task[Grammar]) -> None:
        self._running.pop(source, None)
        if task.cancelled() or task.exception() is not None:
            return
        self._kept[source] = task.result()
        if len(self._kept) > self._max_grammars:
            self._kept.popitem(last=False)
