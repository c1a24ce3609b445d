"""The messages between the bench and a subject: one JSON object a line, one answer for every task.

Times are seconds on the subject's own clock. Formulas of rates and ratios are in `bench/engines/figures.py`.
"""

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of tasks and answers."""


class Setup(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="setup"):
    """The first task: what to open. Peers read `gguf`, our subjects read `student`.

    `reference` is a student folder with fp32 graphs, where `student` itself has none.
    """

    gguf: str | None = None
    student: str | None = None
    reference: str | None = None
    num_threads: int
    precision: str = "auto"


class Generate(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="generate"):
    """Run all `prompts` at once, greedy, ignoring the end of text. `path` None is the full one."""

    prompts: tuple[tuple[int, ...], ...]
    num_tokens: int
    path: str | None = None


class Follow(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="follow"):
    """Run all `prompts` at once, each on its path, greedy, ignoring the end of text, and note when each token comes.
    A subject without paths runs everything."""

    prompts: tuple[tuple[int, ...], ...]
    paths: tuple[str, ...]
    num_tokens: int


class Score(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="score"):
    """Cross-entropy of `texts`, teacher-forced; `num_rows` texts are run side by side where the subject can choose."""

    texts: tuple[tuple[int, ...], ...]
    precision: str | None = None
    num_rows: int = 32


class MixedStep(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mixed_step"):
    """Time a decode step whose rows are spread evenly over every depth, and each module alone."""

    prompt: tuple[int, ...]
    num_rows: int
    repeats: int


class Stall(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="stall"):
    """Watch one running stream while `intruder` arrives after `num_quiet_tokens`."""

    prompt: tuple[int, ...]
    intruder: tuple[int, ...]
    num_quiet_tokens: int


class StartUp(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="start_up"):
    """Start a new server and ask for one token on its shallowest path."""

    prompt: tuple[int, ...]


class Occupy(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="occupy"):
    """Fill every slot of a new server to `num_tokens` (prompt and answer) and read its memory."""

    prompts: tuple[tuple[int, ...], ...]
    num_tokens: int


Task = Setup | Generate | Follow | Score | MixedStep | Stall | StartUp | Occupy


class Opened(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="opened"):
    version: str
    load_s: float


class Absent(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="absent"):
    """The subject cannot run here at all; `reason` says what is missing and how to get it."""

    reason: str


class Generated(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="generated"):
    """`first_s` and `total_s` count from the submission of the job; both cover all its prompts."""

    num_prompt_tokens: int
    num_tokens: int
    first_s: float
    total_s: float


class Followed(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="followed"):
    """`total_s` from the submission of the job to its end; `gaps_s` between tokens, by path."""

    num_tokens: int
    total_s: float
    gaps_s: dict[str, tuple[float, ...]]


class Scored(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="scored"):
    """Per text: the summed negative log-likelihood in nats, and how many tokens it covers (all but the first)."""

    nats: tuple[float, ...]
    num_tokens: tuple[int, ...]


class StepTimes(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="step_times"):
    """Median seconds of the mixed step, and of uniform steps keyed `path:rows`; `paths` are shallowest first."""

    paths: tuple[str, ...]
    rows_per_path: int
    mixed_s: float
    uniform_s: dict[str, float]


class Stalled(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="stalled"):
    """Gaps between tokens of the running stream before the intruder came, and while its prompt was read."""

    quiet_gaps_s: tuple[float, ...]
    loaded_gaps_s: tuple[float, ...]
    intruder_first_s: float


class Started(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="started"):
    """Seconds since the process was started."""

    listening_s: float
    first_token_s: float
    all_loaded_s: float


class Occupied(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="occupied"):
    rss_mib: float
    peak_rss_mib: float
    idle_rss_mib: float


class Unsupported(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="unsupported"):
    """The subject runs, but cannot do this task."""

    reason: str


class Failed(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="failed"):
    error: str


Answer = (
    Opened | Absent | Generated | Followed | Scored | StepTimes | Stalled | Started | Occupied | Unsupported | Failed
)

encode = msgspec.json.Encoder().encode
task_decoder: msgspec.json.Decoder[Task] = msgspec.json.Decoder(Task)
answer_decoder: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
