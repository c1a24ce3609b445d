"""vLLM's scheduler, with steps of one depth and prefixes that only paths of the same form share.

Paths of one depth share a step, whatever their widths. Different depths take turns (`turns.py`).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from engines.vllm.form import PathForm, form_in
from engines.vllm.turns import DepthTurns

logger = logging.getLogger(__name__)


class DepthsMixin:
    """What a scheduler of vLLM's becomes by having depths."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        scheduler: Any = self
        self._form = form_in(scheduler.vllm_config.model_config.hf_config)
        self._turns = DepthTurns()

    def add_request(self, request: Any) -> None:
        """Queue it. Its KV depends on its path, so cached blocks are found under a salt that names the path's form.

        One that names a path which is not there ends with an error in its first step, the only way that vLLM has to
        end one alone; that step runs the default path.
        """
        path, parent = self._path_of(request), super()
        queue: Any = parent
        queue.add_request(request)
        if path is None:
            logger.error("no such path request=%s arguments=%s", request.request_id, request.sampling_params.extra_args)
            self.grammar_compile_error_reqs.add(request.request_id)  # type: ignore[attr-defined]
            request.sampling_params.extra_args = None
            path = self._form.paths[self._form.default_path]
        request.cache_salt = f"{path.num_layers}:{path.width}:{request.cache_salt or ''}"
        request.block_hashes.clear()
        request.update_block_hashes()

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        scheduler: Any = super()
        depths = self._depths_with_work()
        if len(depths) < 2:
            return scheduler.schedule(*arguments, **options)
        depth = self._turns.choose(depths)
        with self._only(depth):
            output = scheduler.schedule(*arguments, **options)
        if not output.total_num_scheduled_tokens:
            self._turns.give_up(depth)
        return output

    def _path_of(self, request: Any) -> PathForm | None:
        try:
            return self._form.path_of(request.sampling_params.extra_args)
        except KeyError:
            return None

    def _depth_of(self, request: Any) -> int:
        path = self._path_of(request)
        return self._form.paths[self._form.default_path].num_layers if path is None else path.num_layers

    def _depths_with_work(self) -> set[int]:
        """Depths whose sequences run; those that wait count only while there is room for one more."""
        scheduler: Any = self
        requests = list(scheduler.running)
        if len(scheduler.running) < scheduler.max_num_active_reqs or not requests:
            requests += [*scheduler.waiting, *scheduler.kv_holding_waiting]
        return {self._depth_of(request) for request in requests}

    @contextmanager
    def _only(self, depth: int) -> Iterator[None]:
        """Hide the sequences of other depths from one call of `schedule`, and put them back in their order.

        `schedule` counts the step before it looks at who is eligible: two ahead leaves out this call alone.
        """
        scheduler: Any = self
        for request in scheduler.running:
            if self._depth_of(request) != depth:
                later = scheduler.current_step + 2
                request.next_decode_eligible_step = max(request.next_decode_eligible_step, later)
        queues = (scheduler.waiting, scheduler.kv_holding_waiting)
        orders = [list(queue) for queue in queues]
        for queue, order in zip(queues, orders, strict=True):
            queue.remove_requests([one for one in order if self._depth_of(one) != depth])
        try:
            yield
        finally:
            for queue, order in zip(queues, orders, strict=True):
                self._restore(queue, order, depth)

    def _restore(self, queue: Any, order: list[Any], depth: int) -> None:
        """Newcomers (sequences that lost their KV in the call) come first, as vLLM puts them."""
        left = list(queue)
        known = set(order)
        newcomers = [one for one in left if one not in known]
        stayed = set(left)
        queue.remove_requests(left)
        for request in [*newcomers, *(one for one in order if one in stayed or self._depth_of(one) != depth)]:
            queue.add_request(request)


class PathScheduler(DepthsMixin, Scheduler):
    """Where steps are not scheduled ahead, as on the CPU."""


class PathAsyncScheduler(DepthsMixin, AsyncScheduler):
    """Where they are."""
