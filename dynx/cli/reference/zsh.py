"""The zsh completion: a function per command, built on zsh's own `_arguments`.

`compinit` finds the file by its name and first line, and loads it at the first Tab: its last lines must then complete at
once, or that first Tab does nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dynx.cli.reference.facts import ARCHITECTURES, completion_of
from dynx.cli.reference.tree import brief

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.cli.reference.facts import Completion, Shipped
    from dynx.cli.reference.tree import Argument, Command, Option

# An empty list of words. With an empty action instead, `_arguments` only shows its message and offers no options.
NOTHING = "()"

HEAD = """\
#compdef NAME
# zsh completion for NAME. Made from the command tree by: python -m dynx.cli.reference
"""

PROGRAM = r"""
# What a value may be: the kind of thing named first, of a task after a colon, or one of the words after it.
_NAME_value() {
    local kind=${1%%:*} task=${1#*:} expl ret=1
    shift
    if [[ $kind == prefixes ]]; then
        if compset -P "(${(j:|:)@})"; then
            _files
        else
            _wanted prefixes expl format compadd -S '' -- "$@"
        fi
        return
    fi
    (($#)) && _wanted values expl value compadd -- "$@" && ret=0
    case $kind in
    models)
        _NAME_hub $task && ret=0
        _files -/ && ret=0
        ;;
    files) _files && ret=0 ;;
    folders) _files -/ && ret=0 ;;
    profiles) _NAME_profiles $task && ret=0 ;;
    esac
    return ret
}

# Models of a task in the hub's cache, told by what their config.json says they are; what draws has a model_index.json.
_NAME_hub() {
    local folder=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub} expl fits=
    local -aU ids
    case $1 in
ARCHITECTURES
    esac
    [[ -n $fits ]] && ids=($folder/models--*/snapshots/*/config.json(N))
    (($#ids)) && ids=(${(f)"$(grep -lE -- $fits $ids 2>/dev/null)"})
    [[ $1 == (draw|any) ]] && ids+=($folder/models--*/snapshots/*/model_index.json(N))
    ids=(${${${ids#$folder/models--}%%/*}/--//})
    (($#ids)) && _wanted models expl model compadd -a ids
}

_NAME_profiles() {
    local task=${1/any/*} folder=${DYNX_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dynx} file
    [[ $OSTYPE == darwin* && -z $DYNX_CACHE_DIR$XDG_CACHE_HOME ]] && folder=$HOME/Library/Caches/dynx
    local -a profiles
    for file in $folder/profiles/${~task}-*-????????????.json(N:t:r); do
        profiles+=("${file##*-}:${file%-*}")
    done
    _describe -t profiles profile profiles
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _NAME "$@"
else
    compdef _NAME NAME
fi
"""


def zsh_completion(root: Command, shipped: Shipped) -> str:
    """Write the completion file for zsh."""
    functions = "".join(_function(command, shipped) for command in root.walk())
    cases = "\n".join(f"    {task}) fits={_quote(words)} ;;" for task, words in ARCHITECTURES.items())
    program = PROGRAM.replace("NAME", root.path[0]).replace("ARCHITECTURES", cases)
    return HEAD.replace("NAME", root.path[0]) + functions + program


def _function(command: Command, shipped: Shipped) -> str:
    specs = [spec for option in command.options for spec in _option(option, command, shipped)]
    if command.commands:
        specs += ["'1: :->command'", "'*:: :->arguments'"]
    else:
        specs += [
            _argument(argument, position, command, shipped) for position, argument in enumerate(command.arguments, 1)
        ]
    call = " \\\n        ".join(("_arguments -C -s -S :", *specs))
    if not command.commands:
        return f"\n{_name(command)}() {{\n    {call}\n}}\n"
    described = "\n".join(f"            {_quote(f'{c.path[-1]}:{brief(c.summary)}')}" for c in command.commands)
    branches = "\n".join(f"        {c.path[-1]}) {_name(c)} && ret=0 ;;" for c in command.commands)
    return f"""
{_name(command)}() {{
    local curcontext=$curcontext context state state_descr line ret=1
    local -a commands
    typeset -A opt_args
    {call} && ret=0
    case $state in
    command)
        commands=(
{described}
        )
        _describe -t commands command commands && ret=0
        ;;
    arguments)
        case $words[1] in
{branches}
        esac
        ;;
    esac
    return ret
}}
"""


def _name(command: Command) -> str:
    return "_" + "_".join(command.path)


def _option(option: Option, command: Command, shipped: Shipped) -> Iterator[str]:
    """Yield `_arguments` specifications, one for each of an option's names."""
    if "--help" in option.names:
        excluded = "(- *)"  # nothing else matters beside it
    elif option.repeatable:
        excluded = "*"
    else:
        excluded = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
    for name in option.names:
        attach = ("=" if name.startswith("--") else "+") if option.metavar else ""
        value = _value(option.metavar, completion_of(option, command, shipped), command) if option.metavar else ""
        described = re.sub(r"([\[\]\\])", r"\\\1", brief(option.help))
        yield _quote(f"{excluded}{name}{attach}[{described}]{value}")


def _argument(argument: Argument, position: int, command: Command, shipped: Shipped) -> str:
    number = "*" if argument.many else f"{position}" if argument.required else f"{position}:"
    return _quote(number + _value(argument.metavar, completion_of(argument, command, shipped), command))


def _value(metavar: str, completion: Completion, command: Command) -> str:
    kinds = {
        "prefixes": bool(completion.prefixes),
        "models": completion.models,
        "files": completion.files,
        "profiles": completion.profiles,
        "folders": completion.folders,
    }
    kind = next((name for name, wanted in kinds.items() if wanted), "words")
    words = completion.prefixes or completion.words
    of = f":{completion.task}" if kind in ("models", "profiles") else ""
    escaped = [word.replace(":", r"\:") for word in words]
    action = (
        " ".join(("", f"_{command.path[0]}_value", kind + of.replace(":", r"\:"), *escaped))
        if words or kind != "words"
        else NOTHING
    )
    return ":" + metavar.replace(":", r"\:") + ":" + action


def _quote(text: str) -> str:
    return "'" + text.replace("'", r"'\''") + "'"
