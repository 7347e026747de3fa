"""The bash completion: one list of commands and options, one list of values, and a short program that reads them.

It works where bash-completion isn't installed, and down to bash 3.2 (macOS), which lacks `compopt`.
"""

from __future__ import annotations

import shlex
import textwrap
from typing import TYPE_CHECKING

from dynx.cli.reference.facts import ARCHITECTURES, completion_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.cli.reference.facts import Completion, Shipped
    from dynx.cli.reference.tree import Command, Option

HEAD = """\
# bash completion for NAME. Made from the command tree by: python -m dynx.cli.reference
# shellcheck shell=bash disable=SC2207

# What may follow a command. An option is written with all its names; = says that it takes a value, + that it repeats.
_NAME_list() {
    case $1 in
"""

VALUES = """\
    esac
}

# What a value may be: of an option ("NAME COMMAND --option") or of an argument ("NAME COMMAND").
_NAME_value() {
    case $1 in
"""

PROGRAM = r"""    *) return 1 ;;
    esac
}

_NAME_words() {
    COMPREPLY+=($(compgen -W "$1" -- "$value"))
}

# readline's own completion quotes what needs quoting; compgen stands in where it can't be asked for.
_NAME_files() {
    compopt -o default 2>/dev/null || COMPREPLY+=($(compgen -f -- "$value"))
}

_NAME_folders() {
    compopt -o filenames -o plusdirs 2>/dev/null || COMPREPLY+=($(compgen -d -- "$value"))
}

_NAME_prefixes() {
    local prefix
    for prefix in $1; do
        if [[ $value == "$prefix"* ]]; then
            value=${value#"$prefix"} lead+=$prefix
            _NAME_files
            return
        fi
    done
    compopt -o nospace 2>/dev/null
    _NAME_words "$1"
}

# Ids of stored profiles of a task.
_NAME_profiles() {
    local task=$1 folder=${DYNX_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dynx} file ids=
    [[ $OSTYPE == darwin* && -z $DYNX_CACHE_DIR$XDG_CACHE_HOME ]] && folder=$HOME/Library/Caches/dynx
    [[ $task == any ]] && task='*'
    local IFS=$'\n'
    for file in $(compgen -G "$folder/profiles/$task-*-????????????.json"); do
        file=${file##*-}
        ids+=${file%.json}$'\n'
    done
    _NAME_words "$ids"
}

# Models of a task in the hub's cache, told by what their config.json says they are; what draws has a model_index.json.
_NAME_hub() {
    local folder=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub} file ids= fits=
    case $1 in
ARCHITECTURES
    esac
    local IFS=$'\n'
    for file in $(
        [[ $1 == draw || $1 == any ]] && compgen -G "$folder/models--*/snapshots/*/model_index.json"
        [[ -n $fits ]] && grep -lE -- "$fits" "$folder"/models--*/snapshots/*/config.json 2>/dev/null
    ); do
        file=${file#"$folder"/models--}
        file=${file%%/*}
        file=${file/--//}$'\n'
        [[ $'\n'$ids == *$'\n'"$file"* ]] || ids+=$file
    done
    _NAME_words "$ids"
}

# Find an option's entry in the list by one of its names.
_NAME_find() {
    for entry in $options; do
        [[ ,${entry%%[=+]*}, == *,"$1",* ]] && return
    done
    entry=
    return 1
}

_NAME_options() {
    local entry names name all=
    for entry in $options; do
        names=${entry%%[=+]*}
        for name in ${names//,/ }; do
            [[ $used == *" $name "* && $entry != *+ ]] && continue 2
        done
        all+=" ${names//,/ }"
    done
    _NAME_words "$all"
}

# The words up to the cursor, whole: bash splits them at = and : too.
_NAME_split() {
    local rest=${COMP_LINE:0:COMP_POINT} i word blank
    words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        blank=${rest%%[![:blank:]]*}
        rest=${rest#"$blank"}
        ((i == COMP_CWORD)) && word=$rest
        if [[ $i -eq 0 || -n $blank ]]; then
            words+=("$word")
        else
            words[${#words[@]} - 1]+=$word
        fi
        rest=${rest#"$word"}
    done
}

_NAME() {
    local IFS=$' \t\n' words word i command=NAME commands options entry used=' ' owner= only_arguments=
    local current value lead= kept= mark
    _NAME_split
    _NAME_list "$command"
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        word=${words[i]}
        if [[ -n $owner ]]; then
            owner=
        elif [[ $word == -- ]]; then
            only_arguments=1
        elif [[ $word == -?* && -z $only_arguments ]]; then
            used+="${word%%=*} "
            [[ $word != *=* ]] && _NAME_find "$word" && [[ $entry == *=* ]] && owner=$word
        elif [[ " $commands " == *" $word "* && -z $only_arguments ]]; then
            command+=" $word"
            used=' '
            _NAME_list "$command"
        fi
    done

    current=${words[${#words[@]} - 1]}
    value=${current#[\"\']}
    COMPREPLY=()
    if [[ -n $owner ]]; then
        _NAME_value "$command $owner"
    elif [[ $current == --*=* && -z $only_arguments ]]; then
        lead=${current%%=*}=
        value=${current#*=}
        _NAME_value "$command ${current%%=*}"
    elif [[ $current == -* && -z $only_arguments ]]; then
        _NAME_options
    elif [[ -n $commands ]]; then
        _NAME_words "$commands"
    else
        _NAME_value "$command"
    fi

    # readline replaces only what follows the last of its word breaks.
    for mark in = :; do
        [[ $COMP_WORDBREAKS == *$mark* && $current == [!\"\']*$mark* ]] || continue
        word=${current%"${current##*"$mark"}"}
        ((${#word} > ${#kept})) && kept=$word
    done
    for i in "${!COMPREPLY[@]}"; do
        word=$lead${COMPREPLY[i]}
        COMPREPLY[i]=${word#"$kept"}
    done
}

complete -F _NAME NAME
"""


def bash_completion(root: Command, shipped: Shipped) -> str:
    """Write the completion file for bash."""
    cases = "\n".join(f"    {task}) fits={shlex.quote(words)} ;;" for task, words in ARCHITECTURES.items())
    head, values, program = (
        text.replace("NAME", root.path[0]).replace("ARCHITECTURES", cases) for text in (HEAD, VALUES, PROGRAM)
    )
    lists = "".join(_list(command) for command in root.walk())
    return head + lists + values + "".join(_values(root, shipped)) + program


def _list(command: Command) -> str:
    options = " ".join(_entry(option) for option in command.options)
    lines = textwrap.wrap(options, 100, break_long_words=False, break_on_hyphens=False)
    return (
        f"    {shlex.quote(command.name)})\n"
        f"        commands={shlex.quote(' '.join(child.path[-1] for child in command.commands))}\n"
        "        options='" + "\n            ".join(lines) + "'\n"
        "        ;;\n"
    )


def _entry(option: Option) -> str:
    return ",".join(option.names) + ("=" if option.metavar else "") + ("+" if option.repeatable else "")


def _values(root: Command, shipped: Shipped) -> Iterator[str]:
    """Yield a case for each parameter, those of one command that complete alike together."""
    for command in root.walk():
        cases: dict[Completion, list[str]] = {}
        for option in command.options:
            if option.metavar:
                names = cases.setdefault(completion_of(option, command, shipped), [])
                names += [shlex.quote(f"{command.name} {name}") for name in option.names]
        for argument in command.arguments[:1]:
            cases.setdefault(completion_of(argument, command, shipped), []).append(shlex.quote(command.name))
        if not command.commands and not command.arguments:
            yield f"    {shlex.quote(command.name)}) _{root.path[0]}_options ;;\n"
        for completion, patterns in cases.items():
            if actions := _actions(completion, root.path[0]):
                yield "    " + " | \\\n    ".join(patterns) + f")\n        {'; '.join(actions)} ;;\n"


def _actions(completion: Completion, program: str) -> list[str]:
    actions = []
    if completion.words:
        actions.append(f"_{program}_words {shlex.quote(' '.join(completion.words))}")
    if completion.prefixes:
        actions.append(f"_{program}_prefixes {shlex.quote(' '.join(completion.prefixes))}")
    for wanted, name in (
        (completion.models, f"hub {completion.task}"),
        (completion.files, "files"),
        (completion.folders, "folders"),
        (completion.profiles, f"profiles {completion.task}"),
    ):
        if wanted:
            actions.append(f"_{program}_{name}")
    return actions
