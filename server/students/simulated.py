"""A student without a model: answers of any length, at set times, with set faults. For tests of clients and of the
server."""

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel

from engines.scripted import Line, ScriptedEngine
from engines.sequence import GenerationRequest
from models.architecture import Architecture
from models.errors import StepFailed
from models.student.folder import Student
from models.student.manifest import FORMAT_VERSION, Exit, Manifest, Module, StudentPath
from models.tokenizer import Tokenizer, TokenizerSettings
from server.students.open_student import Opened

CONTEXT_TOKENS = 32768
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
MOST_TOKENS = 8192
FAULT_AFTER = 3
"""Tokens of a stream that breaks."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Simulation:
    """Units: `first_token_s` from admission, `inter_token_s` between two tokens. `fail_share` of the streams break
    after `FAULT_AFTER` tokens.
    """

    name: str = "simulated"
    first_token_s: float = 0.2
    inter_token_s: float = 0.05
    fail_share: float = 0.0
    max_running: int = 4096


def open_simulated(simulation: Simulation) -> Opened:
    tokenizer = make_tokenizer()
    whole = tuple(f"word{number} " for number in range(MOST_TOKENS))
    well = Line(pieces=whole, first_s=simulation.first_token_s, delay_s=simulation.inter_token_s)
    broken = Line(
        pieces=whole[:FAULT_AFTER],
        first_s=simulation.first_token_s,
        delay_s=simulation.inter_token_s,
        error=StepFailed("a fault that the simulation was asked for"),
    )
    rng = random.Random(0)

    def line_of(request: GenerationRequest) -> Line:
        return broken if rng.random() < simulation.fail_share else well

    engine = ScriptedEngine(
        student=simulation.name,
        paths={"full": 2},
        default_path="full",
        decode=lambda ids: tokenizer.decode(list(ids)),
        line_of=line_of,
        keeps_requests=False,
        max_running=simulation.max_running,
        max_context_tokens=CONTEXT_TOKENS,
    )
    student = Student(folder=Path("nowhere"), manifest=make_manifest(simulation.name), tokenizer=tokenizer)
    return Opened(name=simulation.name, student=student, engine=engine)


def make_tokenizer() -> Tokenizer:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    settings = TokenizerSettings(eos_token="<|end|>", eos_token_ids=(len(alphabet),))
    return Tokenizer(backend, settings, TEMPLATE)


def make_manifest(name: str) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        source="simulated",
        source_sha256="0" * 64,
        licence="Apache-2.0",
        architecture=Architecture(
            family="llama",
            num_layers=1,
            hidden_size=8,
            intermediate_size=16,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            vocab_size=257,
            max_context_tokens=CONTEXT_TOKENS,
            norm_eps=1e-5,
            rope_theta=10000.0,
        ),
        modules=(Module(name="whole", first_layer=0, num_layers=1),),
        exits=(Exit(name="exit", after="whole"),),
        paths=(StudentPath(name="full", modules=("whole",), exit="exit"),),
        tasks={},
        depth_rules=(),
        variants=(),
    )
