"""Manual pages in man(7), one for each command.

Nothing in them depends on the day, the machine or the terminal, so that a committed page can be compared byte for byte.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from dynx.cli.reference import facts
from dynx.cli.reference.tree import NO_REWRAP, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dynx.cli.reference.facts import Settings
    from dynx.cli.reference.tree import Argument, Command, Option

WIDTH = 78  # of the source's lines, for diffs that can be read

# Each of these means something to roff, or is turned into a typographic sign that can't be pasted into a shell.
SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}


def man_pages(root: Command, settings: Settings) -> dict[str, str]:
    """Return the page of every command by file name, e.g. `dynx-generate.1`."""
    return {f"{page_name(command)}.1": man_page(command, root, settings) for command in root.walk()}


def page_name(command: Command) -> str:
    """Return the name to give to `man`."""
    return "-".join(command.path)


def man_page(command: Command, root: Command, settings: Settings) -> str:
    """Write one command's page."""
    lines = [
        '.\\" Made from the command tree by: python -m dynx.cli.reference',
        f'.TH {escape(page_name(command).upper())} 1 {facts.REVISED} {escape(root.name)} "{escape(root.name)} manual"',
        ".nh",  # a hyphen that typesetting put into an option or a path can't be told from its own
        ".ad l",
        ".SH NAME",
        f"{escape(page_name(command))} \\- {escape(_uncapitalized(command.summary).removesuffix('.'))}",
        ".SH SYNOPSIS",
        *_synopsis(command),
        ".SH DESCRIPTION",
        *_description(command),
        *_section("COMMANDS", ((_command_term(child), [child.summary]) for child in command.commands)),
        *_section(
            "ARGUMENTS", ((_italic(argument.metavar), _argument_text(argument)) for argument in command.arguments)
        ),
        *_section("OPTIONS", ((_option_term(option), _option_text(option)) for option in command.options)),
        *_examples(command),
        *_section(
            "EXIT STATUS",
            ((_bold(code.code), [code.meaning]) for code in facts.EXIT_CODES if code.concerns(command)),
        ),
        *(_configuration(settings) if command is root and settings else ()),
        *_section("ENVIRONMENT", _environment(command, settings)),
        *_section("FILES", ((_italic(path), [text]) for path, text in facts.FILES.items())),
        ".SH SEE ALSO",
        *_see_also(command, root),
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    r"""Make roff print a text as it stands: `escape(".5 a-b")` is `\&.5 a\-b`."""
    text = "".join(SPECIAL.get(c) or (c if c.isascii() else f"\\[u{ord(c):04X}]") for c in text)
    return rf"\&{text}" if text.startswith(".") else text


def _uncapitalized(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _bold(text: str) -> str:
    return rf"\fB{escape(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{escape(text)}\fR"


def _fill(text: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [escape(line) for line in lines]


def _verbatim(lines: Iterable[str]) -> list[str]:
    return [".nf", *(escape(line) or r"\&" for line in lines), ".fi"]


def _section(title: str, entries: Iterable[tuple[str, list[str]]]) -> Iterator[str]:
    """Yield a section of terms, each with its sentences below; nothing when there are none."""
    for position, (term, sentences) in enumerate(entries):
        if position == 0:
            yield f".SH {title}"
        yield from (".TP", term)
        for sentence in sentences:
            yield from _fill(sentence)


def _synopsis(command: Command) -> Iterator[str]:
    words = [_bold(command.name)]
    words += [f"{_bold(option.long)} {_italic(option.metavar or '')}" for option in command.options if option.required]
    words.append(rf"[{_italic('OPTIONS')}]")
    for argument in command.arguments:
        word = _italic(argument.metavar) if argument.required else f"[{_italic(argument.metavar)}]"
        words.append(word + (" ..." if argument.many else ""))
    if command.commands:
        words.append(f"{_italic('COMMAND')} ...")
    yield " ".join(words)


def _description(command: Command) -> Iterator[str]:
    yield from _fill(command.summary)
    for paragraph in command.description:
        yield ".PP"
        if paragraph.startswith(NO_REWRAP):
            yield from _verbatim(paragraph.removeprefix(NO_REWRAP).splitlines())
        else:
            yield from _fill(paragraph)


def _command_term(command: Command) -> str:
    return f"{_bold(command.name)}, see {_bold(page_name(command))}(1)"


def _argument_text(argument: Argument) -> list[str]:
    choices = [f"One of {', '.join(argument.choices)}."] if argument.choices else []
    return [argument.help, *choices]


def _option_term(option: Option) -> str:
    names = ", ".join(_bold(name) for name in option.names)
    return f"{names} {_italic(option.metavar)}" if option.metavar else names


def _option_text(option: Option) -> list[str]:
    sentences = [option.help]
    if option.choices and option.metavar != "|".join(option.choices):
        sentences.append(f"One of {', '.join(option.choices)}.")
    if option.required:
        sentences.append("Required.")
    if option.repeatable and option.metavar and "repeatable" not in option.help.lower():
        sentences.append("Repeatable.")
    if bounds := _bounds(*option.bounds):
        sentences.append(bounds)
    if option.default is not None:
        sentences.append(f"Default: {option.default}.")
    if option.envvar:
        sentences.append(f"Also set by {option.envvar}.")
    return sentences


def _bounds(least: float | None, most: float | None) -> str | None:
    if least is not None and most is not None:
        return f"From {number(least)} to {number(most)}."
    if least is not None:
        return f"At least {number(least)}."
    return None if most is None else f"At most {number(most)}."


def _examples(command: Command) -> Iterator[str]:
    """Yield a command's own examples, or the first one of each command below it."""
    examples = command.examples or [line for child in command.commands for line in child.examples[:1]]
    if examples:
        yield ".SH EXAMPLES"
        yield from _verbatim(examples)


def _configuration(settings: Settings) -> Iterator[str]:
    yield ".SH CONFIGURATION"
    yield from _fill(facts.PRECEDENCE)
    yield ".PP"
    yield from _fill("A dynx.toml looks like this:")
    yield ".PP"
    yield from _verbatim(facts.CONFIGURATION.splitlines())
    yield ".PP"
    yield from _fill(facts.RULES)
    heads = ", ".join(key for key, setting in next(iter(settings.values())).items() if setting.shared)
    yield from (".TP", _bold("all commands"), *_fill(f"{heads}."))
    for name, known in settings.items():
        own = [key for key, setting in known.items() if not setting.shared]
        yield from (".TP", _bold(f"[{name}]"), *_fill(f"{', '.join(own)}; and those of all commands."))


def _environment(command: Command, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Yield the variables that set options of a command, or of all, then the others."""
    known = settings.get(command.path[-1], {}) if len(command.path) > 1 else {}
    if known:
        own = [setting.variables[0] for setting in known.values()]
        start = own[0].rpartition("_")[0] + "_"
        rule = "Sets the option of that name. 1 or 0 for a switch, one line per value for a repeatable option."
        yield _bold(start) + _italic("OPTION"), [rule, f"These are {', '.join(own)}."]
    common = [s for s in next(iter(settings.values()), {}).values() if s.shared]
    if common:
        names = ", ".join(setting.variables[1] for setting in common)
        yield (
            _bold(f"{common[0].variables[1].partition('_')[0]}_") + _italic("OPTION"),
            [f"Sets the option for every command: {names}."],
        )
    yield from ((_bold(name), [text]) for name, text in facts.ENVIRONMENT.items())


def _see_also(command: Command, root: Command) -> Iterator[str]:
    others = [page_name(other) for other in root.walk() if other is not command]
    for position, name in enumerate(others):
        comma = "," if position < len(others) - 1 else ""
        yield f".BR {escape(name)} (1){comma}"
