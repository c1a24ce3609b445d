"""Reading settings again while the server runs: all that may change are applied at once, or none."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from models.errors import BadRequest, ServingError
from server.access.keys import Key
from server.context import Context
from server.lifecycle.settings_check import read_sound
from server.settings.config import ServerConfig
from server.students.admission_gate import bounds_of
from server.threads import run_in_daemon_thread
from server.wire.status import ReloadReply

logger = logging.getLogger(__name__)


async def reload(context: Context) -> ReloadReply:
    """Read settings and keys again and apply them; the reply says what changed, and what waits for a restart.

    Raises: BadRequest with every mistake; then nothing has changed.
    """
    async with context.live.reloading:
        reply = None
        try:
            reply = await _reload(context)
        finally:
            context.live.is_reload_good = reply is not None
        return reply


async def _reload(context: Context) -> ReloadReply:
    try:
        config, keys = await run_in_daemon_thread(lambda: _load(context))
        new = merge(context.config, config)
    except ServingError as error:
        logger.error("settings not reloaded, the old ones stay error=%s", error.message)
        raise BadRequest(f"the old settings stay in force: {error.message}") from None
    reply = ReloadReply(
        changed=list(differences(context.config, new)),
        needs_restart=list(differences(new, config)),
        num_keys=len(keys),
    )
    _put_in_force(context, new, keys)
    logger.info(
        "settings reloaded changed=%s needs_restart=%s keys=%d", reply.changed, reply.needs_restart, reply.num_keys
    )
    return reply


def _load(context: Context) -> tuple[ServerConfig, tuple[Key, ...]]:
    """Raises: ConfigError that lists every mistake; BadRequest."""
    if context.draft_config is None:
        raise BadRequest("this server was not started from settings that could be read again")
    return read_sound(context.draft_config, lambda config: merge(context.config, config))


def merge(old: ServerConfig, new: ServerConfig) -> ServerConfig:
    """The new settings where they can change at run time, the old ones elsewhere."""
    router = dataclasses.replace(new.router, enabled=old.router.enabled, classifier=old.router.classifier)
    return dataclasses.replace(
        old,
        limits=new.limits,
        admission=new.admission,
        keys=new.keys,
        admin=new.admin,
        router=router,
        online_quality=new.online_quality,
        grace_s=new.grace_s,
        recommended_sampling=new.recommended_sampling,
        claude_model=new.claude_model,
        special_tokens_in_messages=new.special_tokens_in_messages,
        allow_no_keys=new.allow_no_keys,
        allowed_hosts=new.allowed_hosts,
    )


def differences(old: object, new: object, prefix: str = "") -> Iterator[str]:
    """The dotted names of settings that differ. Values are left out: some are secrets."""
    for part in _parts(old):
        before, after = getattr(old, part.name), getattr(new, part.name)
        if dataclasses.is_dataclass(before):
            yield from differences(before, after, f"{prefix}{part.name}.")
        elif before != after:
            yield f"{prefix}{part.name}"


def _parts(config: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(config)


def _put_in_force(context: Context, config: ServerConfig, keys: tuple[Key, ...]) -> None:
    context.live.config = config
    context.keyring.replace(keys)
    context.router.reconfigure(config.router)
    context.quality.apply_settings()
    for student in context.students:
        student.admission.turns.bounds = bounds_of(config)
