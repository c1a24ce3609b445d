"""A tiny student with a real byte-level tokenizer, and the application on a scripted engine behind a loopback port."""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engines.config import EngineConfig
from engines.scripted import Line, ScriptedEngine
from models.architecture import Architecture
from models.student.manifest import FORMAT_VERSION, DepthRule, Exit, Manifest, Module, Quality, Retention, StudentPath
from models.token_bytes import byte_alphabet
from models.tokenizer import Tokenizer as StudentTokenizer
from models.tokenizer import TokenizerSettings
from router.conversation import Conversation
from router.decision import TaskScores
from router.tasks import GENERAL, TASKS, Task
from server.app import create_app
from server.context import Context, make_context
from server.http.connection_limits import make_protocol
from server.settings.config import Limits, RouterConfig, ServerConfig
from server.students.open_student import Opened, Opener
from server.students.student import ServedStudent
from server.telemetry.tracing import Tracing

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT_TOKENS = 512
STUDENT = "tiny"
RAW_HOST = "x"
"""What tests on plain sockets call the server."""


@dataclass(slots=True, kw_only=True, frozen=True)
class TinyStudent:
    folder: Path
    manifest: Manifest
    tokenizer: StudentTokenizer
    is_verified: bool = True


def make_manifest(name: str = STUDENT) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        source="test",
        source_sha256="0" * 64,
        licence="Apache-2.0",
        architecture=Architecture(
            family="llama",
            num_layers=10,
            hidden_size=8,
            intermediate_size=16,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            vocab_size=258,
            max_context_tokens=CONTEXT_TOKENS,
            norm_eps=1e-5,
            rope_theta=10000.0,
        ),
        modules=(
            Module(name="knowledge", first_layer=0, num_layers=3),
            Module(name="reasoning", first_layer=3, num_layers=5),
            Module(name="adapter", first_layer=8, num_layers=2),
        ),
        exits=(
            Exit(name="exit-knowledge", after="knowledge", num_blocks=1),
            Exit(name="exit-adapter", after="adapter"),
        ),
        paths=(
            StudentPath(name="shallow", modules=("knowledge",), exit="exit-knowledge"),
            StudentPath(name="full", modules=("knowledge", "reasoning", "adapter"), exit="exit-adapter"),
        ),
        tasks={"math": "shallow", "fact": "shallow", "legal": "full", "general": "full"},
        depth_rules=(DepthRule(max_prompt_tokens=128, path="shallow"), DepthRule(max_prompt_tokens=None, path="full")),
        variants=(),
        retention=(
            Retention(path="shallow", task="math", variant="scripted", score=0.97, low=0.96, high=0.98),
            Retention(path="shallow", task="fact", variant="scripted", score=0.85, low=0.80, high=0.90),
        ),
        quality=(Quality(path="full", variant="int8", cross_entropy=2.3, text="gsm8k", num_tokens=100),),
    )


def make_tokenizer(template: str | None = TEMPLATE) -> StudentTokenizer:
    alphabet = byte_alphabet()
    backend = Tokenizer(models.BPE(vocab={alphabet[byte]: byte for byte in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    settings = TokenizerSettings(eos_token="<|im_end|>", eos_token_ids=(257,))
    return StudentTokenizer(backend, settings, template)


def make_student(folder: Path, name: str = STUDENT) -> TinyStudent:
    return TinyStudent(folder=folder, manifest=make_manifest(name), tokenizer=make_tokenizer())


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> TinyStudent:
    return make_student(tmp_path_factory.mktemp("student"))


SURE = 0.9
"""The confidence of the word classifier in the task it found a word of."""


class WordClassifier:
    """Says `math` of a text with that word, and so on, and counts how often it was asked. It fails on `kaboom`."""

    def __init__(self) -> None:
        self.asked: list[Conversation] = []
        self.threads: list[threading.Thread] = []

    def classify(self, conversation: Conversation) -> TaskScores:
        self.asked.append(conversation)
        self.threads.append(threading.current_thread())
        if "kaboom" in conversation.last:
            raise ZeroDivisionError("kaboom")
        found: Task = next((task for task in TASKS if task in conversation.last), GENERAL)
        rest = (1 - SURE) / (len(TASKS) - 1)
        probabilities = {task: SURE if task == found else rest for task in TASKS}
        return TaskScores(task=found, confidence=SURE, probabilities=probabilities)


SCRIPT = {
    "slow": Line(pieces=tuple(f"{i} " for i in range(200)), delay_s=0.02),
    "long": Line(pieces=tuple(f"w{i} " for i in range(50))),
    "stop here": Line(pieces=("one ", "two ", "END", " three")),
    "accents": Line(pieces=("é", "\n\n", "data: x", "\u2028", '"quoted"')),
    "cached": Line(pieces=("a", "b"), num_cached_tokens=7),
}
"""Lines every test may use, by a word of the prompt; faults are added by the tests that need them."""


@dataclass(slots=True, kw_only=True)
class Served:
    """A running server. `client` never retries: a test must see the first answer. `engine` is the first student's."""

    url: str
    context: Context
    engines: dict[str, ScriptedEngine]
    classifier: WordClassifier
    client: openai.OpenAI
    http: httpx.Client

    @property
    def engine(self) -> ScriptedEngine:
        return next(iter(self.engines.values()))

    @property
    def student(self) -> ServedStudent:
        return self.context.students[0]

    def post(self, path: str, body: Mapping[str, Any], **options: Any) -> httpx.Response:
        return self.http.post(path, json=dict(body), **options)

    def chat(self, prompt: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], **fields}
        return self.post("/v1/chat/completions", body, headers=dict(headers or {}))

    def route(self, prompt: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": prompt}], **fields}
        return self.post("/v1/route", body, headers=dict(headers or {}))


def make_engine(script: Mapping[str, Line], *, student: str = STUDENT, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(
        student=student,
        paths={"shallow": 3, "full": 5},
        default_path="full",
        decode=lambda ids: make_tokenizer().decode(list(ids), skip_special=False),
        script=script,
        max_context_tokens=CONTEXT_TOKENS,
        **options,
    )


def open_scripted(student: TinyStudent, engine: ScriptedEngine, tasks: Sequence[Task] = ()) -> Opened:
    return Opened(name=student.manifest.name, student=student, engine=engine, tasks=frozenset(tasks))


@contextlib.contextmanager
def run_server(
    students: Sequence[Opened],
    config: ServerConfig,
    *,
    classifier: WordClassifier | None = None,
    opener: Opener | None = None,
    tracing: Tracing | None = None,
) -> Iterator[Served]:
    """Serve in a thread on an ephemeral loopback port."""
    config = dataclasses.replace(config, allowed_hosts=(*config.allowed_hosts, RAW_HOST))
    classifier = classifier or WordClassifier()
    context = make_context(
        config,
        students,
        classifier=classifier if config.router.enabled else None,
        opener=opener,
        tracing=tracing,
    )
    settings = uvicorn.Config(
        create_app(context),
        host="127.0.0.1",
        port=0,
        log_config=None,
        loop="uvloop",
        http=make_protocol(lambda: context.config.limits, context.refused_connections),
        ws="none",
    )
    server = uvicorn.Server(settings)
    started = threading.Event()
    original = server.main_loop

    async def main_loop() -> None:
        started.set()
        await original()

    server.main_loop = main_loop  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(10)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    client = openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20, _strict_response_validation=True
    )
    try:
        with client, httpx.Client(base_url=url, timeout=20) as http:
            engines = {opened.name: opened.engine for opened in students if isinstance(opened.engine, ScriptedEngine)}
            yield Served(url=url, context=context, engines=engines, classifier=classifier, client=client, http=http)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(student: TinyStudent) -> Iterator[Served]:
    """One server for all tests of a file that do not change it."""
    with run_server([open_scripted(student, make_engine(SCRIPT))], ServerConfig()) as running:
        yield running


Start = Callable[..., Served]


@pytest.fixture
def start(student: TinyStudent) -> Iterator[Start]:
    """A server of the test's own: `start(script, limits=..., engine_config=..., **engine_options)`."""
    with contextlib.ExitStack() as stack:

        def begin(
            script: Mapping[str, Line] | None = None,
            *,
            limits: Limits | None = None,
            engine_config: EngineConfig | None = None,
            router: RouterConfig | None = None,
            **engine_options: Any,
        ) -> Served:
            config = ServerConfig(
                limits=limits or Limits(),
                engine=engine_config or EngineConfig(),
                router=router or RouterConfig(),
            )
            engine = make_engine({**SCRIPT, **(script or {})}, **engine_options)
            return stack.enter_context(run_server([open_scripted(student, engine)], config))

        yield begin


StartPool = Callable[..., Served]


@pytest.fixture
def start_pool(tmp_path: Path) -> Iterator[StartPool]:
    """A server of several students: `start_pool({"big": (), "maths": ("math",)}, admin=..., opener=..., big={...})`.

    Each name may come with options for its engine, `script` among them.
    """
    with contextlib.ExitStack() as stack:

        def begin(
            names: Mapping[str, Sequence[Task]],
            *,
            config: ServerConfig | None = None,
            opener: Opener | None = None,
            **options: Mapping[str, Any],
        ) -> Served:
            students = []
            for name, tasks in names.items():
                engine_options = {"script": SCRIPT, **options.get(name, {})}
                engine = make_engine(student=name, **engine_options)
                students.append(open_scripted(make_student(tmp_path, name), engine, tasks))
            return stack.enter_context(run_server(students, config or ServerConfig(), opener=opener))

        yield begin


def events_of(raw: bytes) -> list[Any]:
    """The JSON of every `data:` line; `[DONE]` stays text. Fails on framing that is not exact."""
    assert raw.endswith(b"\n\n")
    found: list[Any] = []
    for block in raw[:-2].split(b"\n\n"):
        assert block.startswith(b"data: ")
        assert b"\n" not in block
        text = block.removeprefix(b"data: ").decode()
        found.append(text if text == "[DONE]" else json.loads(text))
    return found


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    """Wait for something another thread does."""
    ended = threading.Event()
    for _ in range(int(limit_s / 0.01)):
        if condition():
            return True
        ended.wait(0.01)
    return condition()
