"""`fenhe completion SHELL`: what a shell must read so that TAB completes `fenhe`; and the answers to its questions.

The shell asks by starting `fenhe` itself with `_ARGCOMPLETE` set.
"""

import argparse
import shlex

import argcomplete
from argcomplete.shell_integration import shellcode

SHELLS = ("bash", "zsh", "fish")
ASKED = "_ARGCOMPLETE"
HOW = """to have it in every new shell:
  bash  fenhe completion bash > ~/.local/share/bash-completion/completions/fenhe
  zsh   fenhe completion zsh > DIR/_fenhe, where DIR is in $fpath before compinit
  fish  fenhe completion fish > ~/.config/fish/completions/fenhe.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print what makes the TAB key complete commands, options and their values."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HOW
    parser.add_argument("shell", choices=SHELLS)


def run(arguments: argparse.Namespace) -> int:
    print(shellcode(["fenhe"], shell=arguments.shell))
    return 0


def words_of(line: str) -> list[str]:
    """The words typed so far, a quotation that is still open included."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def complete(parser: argparse.ArgumentParser) -> None:
    """Tell the shell what may stand at its cursor. Does not return."""
    argcomplete.autocomplete(parser, always_complete_options=False)
