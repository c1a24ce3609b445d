"""Moves KV around a forward pass: frees slots, copies between them, and from and to the prefix cache.

Decides nothing: the scheduler chooses the slots, the cache the blocks.
"""

import logging
from collections.abc import Mapping

from engines.contract import Runner
from engines.scheduling.prefix_cache import BLOCK_TOKENS, PrefixCache
from engines.scheduling.step_plan import Paused, StepPlan
from engines.sequence import Sequence, SequenceStatus

logger = logging.getLogger(__name__)


class SlotMoves:
    """`stages` gives the stages of a path that have KV, in order, `widths` its width."""

    def __init__(
        self, runner: Runner, cache: PrefixCache, stages: Mapping[str, tuple[str, ...]], widths: Mapping[str, str]
    ) -> None:
        self._runner = runner
        self._cache = cache
        self._stages = stages
        self._widths = widths

    def prepare(self, plan: StepPlan) -> None:
        """Bring every slot into the state that the step's forward pass expects."""
        for paused in plan.paused:
            self._keep_paused(paused)
        for slot, num_tokens in plan.vacated:
            self._runner.release_slot(slot, num_tokens)
        for move, sequence in plan.moves:
            self._runner.move_slot(move.source, move.target, sequence.path, sequence.num_computed_tokens)
            self._runner.release_slot(move.source, sequence.num_computed_tokens)
        for sequence in plan.restores:
            self._restore(sequence)

    def remember(self, sequence: Sequence) -> None:
        """Put the KV of the sequence's computed tokens into the prefix cache; once its prompt is whole, release the
        blocks that it held there."""
        if sequence.slot is not None:
            self._keep(sequence, sequence.slot, sequence.num_computed_tokens)
            if sequence.status is not SequenceStatus.PREFILLING:
                self._cache.release(sequence.match)

    def _keep_paused(self, paused: Paused) -> None:
        """What cannot be kept is computed again: no reason to fail the step of all others."""
        try:
            self._keep(paused.sequence, paused.slot, paused.num_tokens)
            self._cache.release(paused.sequence.match)
        except Exception:
            logger.warning("kv of a paused sequence not kept sequence=%s", paused.sequence.id, exc_info=True)

    def _keep(self, sequence: Sequence, slot: int, num_tokens: int) -> None:
        if not self._cache.capacity_bytes:
            return
        self._cache.insert(
            sequence.token_ids[:num_tokens],
            self._stages[sequence.path],
            lambda stage, start: self._runner.read_block(stage, slot, start, BLOCK_TOKENS),
            sequence.request.cache_salt,
            self._widths[sequence.path],
        )

    def _restore(self, sequence: Sequence) -> None:
        """Write a cached prefix into the sequence's slot; the match stays held until the whole prompt is cached."""
        assert sequence.slot is not None
        blocks = self._cache.blocks(sequence.match)
        stages = self._stages[sequence.path]
        per_stage = len(blocks) // len(stages) if stages else 0
        for index, block in enumerate(blocks):
            stage, position = stages[index // per_stage], index % per_stage
            self._runner.write_block(stage, sequence.slot, position * BLOCK_TOKENS, block)
