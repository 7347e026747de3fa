"""Facts that the command tree lacks: what values complete to, and the man pages' lists of codes, variables and files.

This is the only part of the package to edit when a command gains an option whose value has a new metavar, or dynx a new
exit code, environment variable or file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from dynx.cli.reference.tree import Argument, Option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.cli.reference.tree import Command
    from dynx.cli.settings import Setting

REVISED = "2026-11-24"  # man pages must carry a date; the day of a build would make them differ from build to build


ANY = "any"

ARCHITECTURES: Mapping[str, str] = {
    "generate": '(ForCausalLM|LMHeadModel)"',
    "classify": '(ForSequenceClassification|ForImageClassification)"',
    ANY: '(ForCausalLM|LMHeadModel|ForSequenceClassification|ForImageClassification)"',
}
"""Pattern by task that `grep -E` finds in the config.json of a model that fits; pipelines have a model_index.json instead."""


@dataclass(frozen=True)
class Completion:
    """The values that complete an option or an argument; none for free text and numbers."""

    words: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()  # such as "json:", each followed by a file
    models: bool = False  # the names of shipped models, and of those in the hub's cache
    files: bool = False
    folders: bool = False
    profiles: bool = False  # ids of stored profiles
    task: str = ANY  # whose models and profiles


BY_METAVAR: Mapping[str, Completion] = {
    "FILE": Completion(files=True),
    "PATH": Completion(files=True),
    "GOLD": Completion(files=True),
    "OUT": Completion(files=True),
    "INPUT": Completion(files=True),
    "FOLDER": Completion(folders=True),
    "DIR": Completion(folders=True),
    "MODEL": Completion(models=True, folders=True),
    "DRAFT": Completion(words=("auto", "none", "self", "lookup"), models=True, folders=True),
    "DEVICE": Completion(words=("auto", "cpu", "cuda", "xpu", "mps")),
    "ID": Completion(profiles=True),
    "ID|FOLDER": Completion(profiles=True, folders=True),
    "FORMAT:PATH": Completion(prefixes=("json:", "md:", "csv:", "junit:", "github-action-benchmark:")),
    "TASK": Completion(words=("generate", "classify", "draw", "all")),
    "LENGTHS": Completion(words=("none",)),
}

# Options that take more values than their metavar names.
BY_OPTION: Mapping[str, Completion] = {
    "--profile": Completion(words=("none",), profiles=True),
    "--steps": Completion(words=("auto",)),
}


Settings: TypeAlias = "Mapping[str, Mapping[str, Setting]]"
"""Settings by command and key."""

Shipped: TypeAlias = "Mapping[str, tuple[str, ...]]"
"""Names of the shipped models by task, which is the name of the command that runs them."""


def _task(parameter: Option | Argument, command: Command, shipped: Shipped) -> str:
    """Return the task whose models and profiles a value names; calibrate takes any."""
    task = "generate" if parameter.metavar == "DRAFT" else command.path[-1]
    return task if task in shipped else ANY


def completion_of(parameter: Option | Argument, command: Command, shipped: Shipped) -> Completion:
    """Return what a parameter of a command completes to, with the names of the shipped models that fit among the words."""
    if parameter.choices:
        return Completion(words=parameter.choices)
    found = BY_METAVAR.get(parameter.metavar or "", Completion())
    default = None
    if isinstance(parameter, Option):
        found = BY_OPTION.get(parameter.long, found)
        default = parameter.default
    if not (found.models or found.profiles):
        return found
    task = _task(parameter, command, shipped)
    if not found.models:
        return replace(found, task=task)
    fitting = shipped[task] if task in shipped else sorted({name for names in shipped.values() for name in names})
    names = (*found.words, *((default,) if default else ()), *fitting)
    return replace(found, words=tuple(dict.fromkeys(names)), task=task)


@dataclass(frozen=True)
class ExitCode:
    """An exit code of the commands that have one of `options` (of all, if there are none), and of the root."""

    code: str
    meaning: str
    options: tuple[str, ...] = ()

    def concerns(self, command: Command) -> bool:
        """Whether a command can end with it."""
        names = {name for option in command.options for name in option.names}
        return not self.options or len(command.path) == 1 or not names.isdisjoint(self.options)


EXIT_CODES = (
    ExitCode("0", "Success; also when the reader of a pipe has closed it."),
    ExitCode(
        "1",
        "Failure, reported in one line on stderr. With --json that line is JSON (schema dynx.error/1), unless stderr is a "
        "terminal.",
    ),
    ExitCode("2", "The command line or the input is wrong."),
    ExitCode(
        "3", "A gate failed, or a check found a broken promise.", ("--min-speedup", "--require-identical", "--check")
    ),
    ExitCode("125", "With --bisect: no verdict, so that git bisect skips the commit.", ("--bisect",)),
    ExitCode("4", "A profile is required, and no stored one fits.", ("--require-profile", "--check")),
    ExitCode("5", "The device or backend isn't available, or ran out of memory.", ("--device",)),
    ExitCode("130, 143", "Ended by a signal: SIGINT (Ctrl-C) or SIGTERM."),
)

ENVIRONMENT: Mapping[str, str] = {
    "DYNX_CONFIG": "A settings file to read instead of every dynx.toml; none reads no file.",
    "DYNX_CACHE_DIR": "The folder for profiles and compiled artifacts; by default the platform's cache folder.",
    "DYNX_BENCH_SLOW": "For testing gates of dynx bench: slows an arm down by a share of its time, such as dynamic=15%.",
    "DYNX_LAZY_IMPORTS": "Set to 0 to import PyTorch and transformers as a whole, which takes longer.",
    "DYNX_DEBUG": "Set to 1 to show tracebacks of errors.",
    "NO_COLOR": "Set to any value to turn colour off.",
    "FORCE_COLOR": "Set to any value to use colour even if the output isn't a terminal.",
    "HF_HOME": "The folder for models from the Hugging Face hub.",
    "HF_HUB_OFFLINE": "Set to 1 to never contact the hub, as with --offline.",
    "OMP_NUM_THREADS": "Processor threads to use unless --threads is given.",
}

FILES: Mapping[str, str] = {
    "dynx.toml": "The project's settings: the nearest such file from the working folder upwards. See CONFIGURATION in dynx(1).",
    "${XDG_CONFIG_HOME:-~/.config}/dynx/dynx.toml": "The user's settings; the project's take precedence.",
    "~/Library/Application Support/dynx/dynx.toml": "The user's settings on macOS, unless XDG_CONFIG_HOME is set.",
    "$DYNX_CACHE_DIR/profiles": "Stored profiles, where DYNX_CACHE_DIR is set.",
    "${XDG_CACHE_HOME:-~/.cache}/dynx/profiles": "Stored profiles otherwise.",
    "~/Library/Caches/dynx/profiles": "Stored profiles on macOS, unless XDG_CACHE_HOME is set.",
}

PRECEDENCE = (
    "Every option can also be set by an environment variable or in a file. The command line takes precedence, then the "
    "variable, then the project's dynx.toml, then the user's, then the default; -vv shows the origin of each value."
)

CONFIGURATION = """\
device = "cpu"             # for every command

[generate]
model = "./my-model"       # from this file's folder
temperature = 0.8
stop = ["THE END"]
"""

RULES = (
    "Keys are the long options without their dashes; switches are true or false, repeatable options take a list. An unknown "
    "key is an error in any table. Options for a single action, such as --list, can't be set, and a project's file can't set "
    "--allow-pickle or --trust-remote-code."
)
