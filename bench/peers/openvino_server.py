"""`python -m bench.peers.openvino_server`: OpenVINO GenAI's continuous batching over HTTP, for comparisons under load.

OpenVINO GenAI has no server in Python, so this is ours and as thin as can be: streamed greedy chats, prompts and text
by fenhe's tokenizer, one thread that steps the pipeline. Whoever leaves is cancelled.
"""

import argparse
import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from engines.text import TextStream
from models.tokenizer import Tokenizer

KV_CACHE_GB = 2
BATCH_TOKENS = 512
MAX_SEQUENCES = 128


@dataclass(slots=True, kw_only=True)
class Running:
    """`push` gets the token ids of a step, and None at the end."""

    handle: Any
    push: Callable[[list[int] | None], None]


class Pipeline:
    """Steps on a thread of its own while anything runs; requests join between two steps."""

    def __init__(self, gguf: Path, num_threads: int) -> None:
        import openvino  # type: ignore[import-not-found]
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = KV_CACHE_GB
        scheduler.max_num_batched_tokens = BATCH_TOKENS
        scheduler.max_num_seqs = MAX_SEQUENCES
        scheduler.enable_prefix_caching = True
        scheduler.dynamic_split_fuse = True
        options = {"INFERENCE_NUM_THREADS": num_threads}
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(str(gguf), scheduler, "CPU", options)
        self._tensor: Any = openvino.Tensor
        self._config: Any = openvino_genai.GenerationConfig
        self._is_running: Any = openvino_genai.GenerationStatus.RUNNING
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._arrived: list[tuple[list[int], int, bool, Callable[[list[int] | None], None]]] = []
        self._running: list[Running] = []
        threading.Thread(target=self._run, name="pipeline", daemon=True).start()

    def submit(
        self, ids: list[int], max_tokens: int, ignore_eos: bool, push: Callable[[list[int] | None], None]
    ) -> None:
        with self._changed:
            self._arrived.append((ids, max_tokens, ignore_eos, push))
            self._changed.notify()

    def cancel(self, push: Callable[[list[int] | None], None]) -> None:
        for one in list(self._running):
            if one.push is push:
                one.handle.cancel()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._arrived or self._running)
                arrived, self._arrived = self._arrived, []
            for ids, max_tokens, ignore_eos, push in arrived:
                self._running.append(self._start(ids, max_tokens, ignore_eos, push))
            self._pipeline.step()
            self._running = [one for one in self._running if self._hand_on(one)]

    def _start(
        self, ids: list[int], max_tokens: int, ignore_eos: bool, push: Callable[[list[int] | None], None]
    ) -> Running:
        config = self._config()
        config.max_new_tokens = max_tokens
        config.ignore_eos = ignore_eos
        config.do_sample = False
        config.apply_chat_template = False
        prompt = self._tensor(np.asarray([ids], dtype=np.int64))
        return Running(handle=self._pipeline.add_request(next(self._numbers), prompt, config), push=push)

    def _hand_on(self, one: Running) -> bool:
        """Whether it goes on."""
        is_over = one.handle.get_status() != self._is_running
        if one.handle.can_read():
            one.push([token for output in one.handle.read().values() for token in output.generated_ids])
        if is_over:
            one.push(None)
        return not is_over


class ChatBody(msgspec.Struct):
    """What of a request counts; the rest is ignored."""

    messages: list[dict[str, str]]
    max_tokens: int = 64
    ignore_eos: bool = False


def make_app(pipeline: Pipeline, tokenizer: Tokenizer) -> Starlette:
    decode = msgspec.json.Decoder(ChatBody).decode
    assert tokenizer.chat_template is not None
    template = tokenizer.chat_template

    async def chat(request: Request) -> Response:
        body = decode(await request.body())
        ids = tokenizer.encode(template.render(body.messages, add_generation_prompt=True))
        return StreamingResponse(stream(ids, body), media_type="text/event-stream")

    async def stream(ids: list[int], body: ChatBody) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[list[int] | None] = asyncio.Queue()

        def push(tokens: list[int] | None) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, tokens)

        text, num_tokens, is_over = TextStream(tokenizer.token_bytes, ()), 0, False
        pipeline.submit(ids, body.max_tokens, body.ignore_eos, push)
        try:
            while (tokens := await steps.get()) is not None:
                num_tokens += len(tokens)
                yield _event({"delta": {"content": "".join(map(text.push, tokens))}})
            is_over = True
        finally:
            if not is_over:
                pipeline.cancel(push)
        yield _event({"delta": {"content": text.finish()}, "finish_reason": "length"})
        usage = {"prompt_tokens": len(ids), "completion_tokens": num_tokens, "total_tokens": len(ids) + num_tokens}
        yield b"data: " + msgspec.json.encode({"choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n"

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def _event(choice: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode({"choices": [{"index": 0, **choice}]}) + b"\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.openvino_server", description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True, help="for its tokenizer and chat template")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    app = make_app(Pipeline(options.gguf, options.threads), Tokenizer.load(options.student))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
