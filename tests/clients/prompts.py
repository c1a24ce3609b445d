"""What the programs ask, by name, and what the scripted student answers."""

import json
from collections.abc import Mapping

from engines.scripted import Line
from models.errors import QueueFull, StepFailed
from tests.clients.programs.program import WEATHER

CONTEXT_TOKENS = 2**18
"""Of the scripted student, for which a token is a byte: as much text as about 64k tokens of a usual tokenizer hold."""

GREETING = "Hello, world!"
FORECAST = "It is 12 degrees in Oslo."
BROKEN = "the forward pass broke"
PERSON = '{"name": "Anna Berg", "age": 34, "city": "Oslo"}'
COMMAND = WEATHER.replace("12", "%s", 1)
"""What `printf` makes the tool's answer of, given 12: it stands in what the command prints and not in the command."""

PROMPTS = {
    "chat": "What is the capital of France?",
    "more": "Say goodbye in one word.",
    "weather": "What is the weather in Oslo?",
    "command": "Run the command that tells the weather.",
    "person": "Extract as JSON: Anna Berg is 34 years old and lives in Oslo.",
    "long": "word " * (CONTEXT_TOKENS // 5 + 1000),
    "busy": "Answer although you are busy.",
    "broken": "Break off in the middle.",
    "endless": "Count without end.",
}


def call_of(name: str, **arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def pieces(text: str, size: int = 7) -> tuple[str, ...]:
    """A text in pieces as a model would give it, that end anywhere."""
    return tuple(text[start : start + size] for start in range(0, len(text), size))


SCRIPT: Mapping[str, Line] = {
    WEATHER: Line(pieces=pieces(FORECAST)),
    PROMPTS["weather"]: Line(pieces=pieces(call_of("get_weather", city="Oslo"))),
    PROMPTS["command"]: Line(pieces=pieces(call_of("exec_command", cmd=f"printf '{COMMAND}' 12"))),
    PROMPTS["person"]: Line(pieces=pieces(PERSON)),
    PROMPTS["busy"]: Line(refusal=QueueFull("256 sequences are waiting; try again later", retry_after_s=1.0)),
    PROMPTS["broken"]: Line(pieces=pieces("This is going to"), error=StepFailed(BROKEN), delay_s=0.1),
    PROMPTS["endless"]: Line(pieces=tuple(f"{number} " for number in range(20_000)), delay_s=0.02),
}
"""By a part of the prompt, the first that fits; anything else is greeted."""

DEFAULT_LINE = Line(pieces=pieces(GREETING, 3), delay_s=0.03)
"""With time between its pieces: what comes at once is sent as one."""
