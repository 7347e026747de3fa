"""The fish completion: a `complete` line for each option, on the condition that its command is being typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.cli.reference.facts import ARCHITECTURES, completion_of
from dynx.cli.reference.tree import brief

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.cli.reference.facts import Completion, Shipped
    from dynx.cli.reference.tree import Command, Option

PROGRAM = r"""# fish completion for NAME. Made from the command tree by: python -m dynx.cli.reference

# The command being typed, with its parents: fish's own helpers would take a word of the prompt for one.
function __NAME_command
    set -l path
    set -l is_value no
    for word in (commandline -opc)
        if test $is_value = yes
            set is_value no
            continue
        end
        switch "$path"
            case ''
                set path NAME
CASES
        end
    end
    echo $path
end

function __NAME_at
    test (__NAME_command) = "$argv"
end

# The value being typed, without the option that it may hang on.
function __NAME_value
    commandline -ct | string replace -r '^--[^=]*=' ''
end

function __NAME_folders
    __fish_complete_directories (__NAME_value)
end

function __NAME_files_after
    set -l value (__NAME_value)
    for prefix in $argv
        if string match -q -- "$prefix*" $value
            printf '%s\n' $prefix(complete -C"'' "(string replace -- $prefix '' $value) | string replace -r '\t.*' '')
            return
        end
    end
    printf '%s\n' $argv
end

# Models of a task in the hub's cache, told by what their config.json says they are; what draws has a model_index.json.
function __NAME_hub
    set -l folder $HOME/.cache/huggingface/hub
    if test -n "$HF_HUB_CACHE"
        set folder $HF_HUB_CACHE
    else if test -n "$HF_HOME"
        set folder $HF_HOME/hub
    else if test -n "$XDG_CACHE_HOME"
        set folder $XDG_CACHE_HOME/huggingface/hub
    end
    set -l fits
    switch $argv[1]
ARCHITECTURES
    end
    set -l files
    if set -q fits[1]
        set files $folder/models--*/snapshots/*/config.json
        if set -q files[1]
            set files (grep -lE -- $fits $files 2>/dev/null)
        end
    end
    if contains -- $argv[1] draw any
        set -a files $folder/models--*/snapshots/*/model_index.json
    end
    for file in $files
        string replace -r '^.*/models--([^/]*)/snapshots/[^/]*/[^/]*$' '$1' -- $file | string replace -- -- /
    end
end

function __NAME_profiles
    set -l folder $HOME/.cache/dynx
    if test -n "$DYNX_CACHE_DIR"
        set folder $DYNX_CACHE_DIR
    else if test -n "$XDG_CACHE_HOME"
        set folder $XDG_CACHE_HOME/dynx
    else if test (uname) = Darwin
        set folder $HOME/Library/Caches/dynx
    end
    for file in $folder/profiles/*-*.json
        set -l found (string match -r '([^/]*)-([0-9a-f]{12})\.json$' -- $file)
        and string match -qr -- "^("(string replace any '.*' -- $argv[1])")-" $found[2]
        and printf '%s\t%s\n' $found[3] $found[2]
    end
end

complete -c NAME -f
"""


def fish_completion(root: Command, shipped: Shipped) -> str:
    """Write the completion file for fish."""
    fits = "\n".join(
        f"        case {task}\n            set fits {_quote(words)}" for task, words in ARCHITECTURES.items()
    )
    program = PROGRAM.replace("CASES\n", "".join(_cases(root))).replace("NAME", root.path[0])
    program = program.replace("ARCHITECTURES", fits)
    return program + "".join(line + "\n" for command in root.walk() for line in _command(command, shipped))


def _cases(root: Command) -> Iterator[str]:
    """Yield, for each command that has commands, how it steps to them over its own options' values."""
    for command in root.walk():
        if not command.commands:
            continue
        yield f"            case {_quote(command.name)}\n                switch $word\n"
        yield f"                    case {' '.join(_quote(child.path[-1]) for child in command.commands)}\n"
        yield '                        set path "$path $word"\n'
        if valued := [_quote(name) for option in command.options if option.metavar for name in option.names]:
            yield f"                    case {' '.join(valued)}\n                        set is_value yes\n"
        yield "                end\n"


def _command(command: Command, shipped: Shipped) -> Iterator[str]:
    program = command.path[0]
    start = f"complete -c {program} -n '__{program}_at {command.name}'"
    yield f"\n# {command.name}"
    for child in command.commands:
        yield f"{start} -a {_quote(child.path[-1])} -d {_quote(brief(child.summary))}"
    for argument in command.arguments[:1]:
        if value := _value(completion_of(argument, command, shipped), program):
            yield f"{start} {value}"
    for option in command.options:
        names = " ".join(_name(name) for name in option.names)
        value = f" {_option_value(option, command, shipped, program)}" if option.metavar else ""
        yield f"{start} {names}{value} -d {_quote(brief(option.help))}"


def _name(name: str) -> str:
    return f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"


def _option_value(option: Option, command: Command, shipped: Shipped, program: str) -> str:
    value = _value(completion_of(option, command, shipped), program)
    return f"-r {value}" if value.startswith("-F") else f"-x {value}".rstrip()


def _value(completion: Completion, program: str) -> str:
    """Return the arguments of `complete` for a value; nothing for free text."""
    offers = list(completion.words)
    if completion.prefixes:
        offers.append(f"(__{program}_files_after {' '.join(completion.prefixes)})")
    if completion.models:
        offers.append(f"(__{program}_hub {completion.task})")
    if completion.folders:
        offers.append(f"(__{program}_folders)")
    if completion.profiles:
        offers.append(f"(__{program}_profiles {completion.task})")
    words = f"-a {_quote(' '.join(offers))}" if offers else ""
    return " ".join(part for part in ("-F" if completion.files else "", words) if part)


def _quote(text: str) -> str:
    """Quote for fish, where a backslash counts inside single quotes."""
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"
