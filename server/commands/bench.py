"""`fenhe bench ...`: which benches there are; each reads the rest of the line itself."""

import importlib
from dataclasses import dataclass

from models.errors import ConfigError
from server.settings.suggestions import did_you_mean

HELP = ("-h", "--help")


@dataclass(slots=True, frozen=True)
class Bench:
    """`module` has `run(arguments)`."""

    module: str
    about: str


BENCHES = {
    "engines": Bench("bench.engines.cli", "the engine beside other engines: tokens/s and latency on the same model"),
    "router": Bench("bench.router.cli", "the task router: the time of a decision, and how many are right"),
    "distill": Bench("bench.distill.cli", "training exits, beside a plain distillation loop"),
    "similar": Bench("bench.router.similar", "the semantic cache: how often it would be right, and wrong"),
    "head": Bench("bench.engines.head", "the cheap head beside the exact one: time of a step, and equal tokens"),
    "remote": Bench("bench.remote.cli", "a remote student beside its upstream: the latency that it adds"),
    "grammar": Bench("bench.engines.grammar", "what keeping to a grammar costs the rows that do, and the others"),
    "choosing": Bench("bench.engines.choosing", "what choosing one token costs, for each way of choosing"),
}


def run(arguments: list[str]) -> int:
    """Raises: ConfigError when there is no such bench, and what that bench raises."""
    name, rest = (arguments[0] if arguments else None), arguments[1:]
    if name in HELP:
        print(overview())
        return 0
    if name is None or name not in BENCHES:
        what = "what to measure?" if name is None else f"no bench is called {name!r}{did_you_mean(name, BENCHES)}"
        raise ConfigError(what, f"there are {names()}", "see `fenhe bench --help`")
    status: int = importlib.import_module(BENCHES[name].module).run(rest)
    return status


def names() -> str:
    return ", ".join(f"`fenhe bench {name}`" for name in BENCHES)


def overview() -> str:
    lines = [f"  {name:<9} {bench.about}" for name, bench in BENCHES.items()]
    usage = ["usage: fenhe bench BENCH [OPTION ...]", "", "benches:"]
    return "\n".join([*usage, *lines, "", "their options: `fenhe bench engines --help`"])
