"""Where prompts come from, with real pipes, files, terminals and sockets on the other end."""

from __future__ import annotations

import os
import pty
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

import pytest

from dynx.cli.calibration_data import read_prompts
from dynx.cli.inputs import BadLine, each_line, piped, read_lines, read_prompt, typed
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@contextmanager
def pipe(data: bytes | None = b"") -> Iterator[BinaryIO]:
    """The reading end of a pipe that `data` was written to and then closed; None leaves it open and silent."""
    reading, writing = os.pipe()
    feeder = None
    if data is not None:

        def feed() -> None:
            with suppress(BrokenPipeError), os.fdopen(writing, "wb") as out:  # some readers don't read
                out.write(data)

        feeder = threading.Thread(target=feed)
        feeder.start()
    with os.fdopen(reading, "rb") as stdin:
        yield stdin
    if feeder is None:
        os.close(writing)
    else:
        feeder.join()


@contextmanager
def file(folder: Path, data: bytes) -> Iterator[BinaryIO]:
    """A file opened as stdin would be by the shell's <."""
    path = folder / "input"
    path.write_bytes(data)
    with path.open("rb") as stdin:
        yield stdin


@contextmanager
def terminal() -> Iterator[BinaryIO]:
    """A pseudo-terminal that nobody types on."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "rb") as stdin:
        yield stdin
    os.close(ours)


def test_without_a_prompt_a_terminal_is_not_read() -> None:
    """With nothing to do and somebody at the keyboard there is no prompt, for the caller to show help."""
    with terminal() as stdin:
        assert read_prompt([], stdin) is None


@pytest.mark.parametrize("data", [b"Once upon", b"Once upon\n"], ids=["bare", "with a newline"])
def test_without_a_prompt_a_pipe_is_the_prompt(data: bytes) -> None:
    """What is piped in is the prompt, less the newline that echo puts at its end."""
    with pipe(data) as stdin:
        assert read_prompt([], stdin) == "Once upon"


def test_without_a_prompt_a_file_is_the_prompt(tmp_path: Path) -> None:
    """A file on stdin is the prompt, inner and doubled line breaks kept."""
    with file(tmp_path, b"One\n\nTwo\n\n") as stdin:
        assert read_prompt([], stdin) == "One\n\nTwo\n"


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t"], ids=repr)
def test_empty_stdin_is_no_prompt(data: bytes) -> None:
    """Nothing but white space on stdin is a mistake to tell of, not an empty prompt to answer."""
    with pipe(data) as stdin, pytest.raises(UsageError, match="stdin is empty") as told:
        read_prompt([], stdin)
    with pipe(data) as stdin, pytest.raises(UsageError, match="stdin is empty"):
        read_prompt(["before", "-"], stdin)
    with pipe(data) as stdin, pytest.raises(UsageError, match="PROMPT is empty, and so is stdin"):
        read_prompt([""], stdin)

    assert told.value.hint


def test_words_are_joined_as_the_shell_split_them() -> None:
    """Several arguments are one prompt."""
    with terminal() as stdin:
        assert read_prompt(["Once", "upon a", "time"], stdin) == "Once upon a time"


def test_piped_text_comes_before_the_prompt(tmp_path: Path) -> None:
    """With both, a pipe's or a file's text comes first and the argument is the last line."""
    with pipe(b"A letter.\nIts end.\n") as stdin:
        assert read_prompt(["A summary:"], stdin) == "A letter.\nIts end.\nA summary:"
    with file(tmp_path, b"A letter.") as stdin:
        assert read_prompt(["A summary:"], stdin) == "A letter.\nA summary:"


@pytest.mark.parametrize("data", [b"", b"\n \n"], ids=repr)
def test_an_empty_pipe_beside_a_prompt_adds_nothing(data: bytes) -> None:
    """A prompt is answered as it is where stdin turns out to hold nothing."""
    with pipe(data) as stdin:
        assert read_prompt(["Once"], stdin) == "Once"


def test_dev_null_beside_a_prompt_is_not_read() -> None:
    """Services and editors start commands with /dev/null on stdin; it is neither waited for nor complained of."""
    with open(os.devnull, "rb") as stdin:  # noqa: PTH123
        assert read_prompt(["Once"], stdin) == "Once"
        assert not piped(stdin.fileno())


def test_a_socket_beside_a_prompt_is_not_read() -> None:
    """A socket that a parent left on stdin may stay open for ever, so it is read only when nothing else is there."""
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as stdin:
        assert read_prompt(["Once"], stdin) == "Once"

        ours.sendall(b"From afar")
        ours.close()
        assert read_prompt([], stdin) == "From afar"


def test_a_silent_inherited_pipe_is_given_up_with_a_word() -> None:
    """A pipe that nobody writes to gets one notice, then the prompt is answered without it."""
    said: list[str] = []
    with pipe(None) as stdin:
        assert read_prompt(["Once"], stdin, say=said.append, notice=0.01, give_up=0.02) == "Once"

    assert ["--no-stdin" in said[0], "going on without" in said[1]] == [True, True]
    assert len(said) == 2


def test_a_slow_pipe_is_waited_for_once_it_has_begun() -> None:
    """A writer that starts after the notice is heard to its end."""
    said: list[str] = []
    reading, writing = os.pipe()

    def hear(word: str) -> None:
        said.append(word)
        os.write(writing, b"Late, ")
        threading.Thread(target=lambda: (os.write(writing, b"and in pieces"), os.close(writing))).start()

    with os.fdopen(reading, "rb") as stdin:
        assert read_prompt(["Once"], stdin, say=hear, notice=0.01, give_up=60) == "Late, and in pieces\nOnce"

    assert len(said) == 1


def test_a_dash_stands_for_stdin() -> None:
    """- is replaced by what stdin holds, wherever it stands."""
    with pipe(b"the fox\n") as stdin:
        assert read_prompt(["Tell of", "-", "in two lines"], stdin) == "Tell of the fox in two lines"


def test_a_second_dash_is_refused() -> None:
    """Stdin can be read once only."""
    with pipe(b"x") as stdin, pytest.raises(UsageError, match="once only"):
        read_prompt(["-", "-"], stdin)


def test_never_reading_means_never() -> None:
    """--no-stdin leaves a full pipe alone, and contradicts -."""
    with pipe(b"ignored") as stdin:
        assert read_prompt(["Once"], stdin, never=True) == "Once"
        assert read_prompt([], stdin, never=True) is None
        with pytest.raises(UsageError, match="forbids"):
            read_prompt(["-"], stdin, never=True)
        assert stdin.read() == b"ignored"


@pytest.mark.parametrize("arguments", [[], ["-"], ["A summary:"]], ids=["alone", "dash", "beside a prompt"])
def test_bytes_that_are_no_text_are_told_by_offset(arguments: list[str]) -> None:
    """Invalid UTF-8 is refused, naming the first bad byte and where it is."""
    with (
        pipe("Grüße".encode() + b" caf\xe9!") as stdin,
        pytest.raises(UsageError, match=r"stdin .* byte 0xe9 at offset 11") as told,
    ):
        read_prompt(arguments, stdin)

    assert "iconv" in str(told.value.hint)


def test_an_argument_that_is_no_text_is_told_by_offset() -> None:
    """The shell passes any bytes; those of an argument are checked like stdin's."""
    with pytest.raises(UsageError, match=r"PROMPT .* byte 0xe9 at offset 3"):
        typed(os.fsdecode(b"caf\xe9"), "PROMPT")

    assert typed("café 日本", "PROMPT") == "café 日本"


def test_input_larger_than_any_pipe_arrives_whole() -> None:
    """Megabytes pass, though a pipe holds only kilobytes."""
    data = ("Es war einmal. " * 600_000).encode()
    with pipe(data) as stdin:
        text = read_prompt(["Ende."], stdin)

    assert len(data) > 8 * MIB
    assert text == data.decode() + "\nEnde."


def test_lines_are_prompts_in_order() -> None:
    """Each line is a prompt; the last needs no newline, blank ones don't count, Windows' line ends are no text."""
    with pipe(b"one\n\ntwo\r\n   \n\r\nthr\xc3\xa9e\r") as stdin:
        assert list(read_lines([], stdin)) == ["one", "two", "thrée"]


MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_text() -> None:
    """What Windows' editors put at the start is left out, of all of stdin and of its first line; elsewhere it is a character."""
    with pipe(MARK + b"one\n") as stdin:
        assert read_prompt([], stdin) == "one"
    with pipe(MARK + b"one\n") as stdin:
        assert read_prompt(["two"], stdin) == "one\ntwo"
    with pipe(MARK + b"one\n") as stdin:
        assert read_prompt(["-", "two"], stdin) == "one two"
    with pipe(MARK + b"one\n" + MARK + b"two\n") as stdin:
        assert list(read_lines([], stdin)) == ["one", "\ufefftwo"]
    assert typed("\ufeffone", "PROMPT") == "\ufeffone"


def test_a_byte_order_mark_alone_is_nothing() -> None:
    """A file that an editor saved empty is as empty as one of no bytes."""
    with pipe(MARK) as stdin, pytest.raises(UsageError, match="stdin is empty"):
        read_prompt([], stdin)
    with pipe(MARK + b"\n") as stdin, pytest.raises(UsageError, match="stdin is empty"):
        list(read_lines([], stdin))
    with pipe(MARK) as stdin:
        assert read_prompt(["two"], stdin) == "two"


def test_a_bad_byte_after_a_byte_order_mark_is_counted_with_it() -> None:
    """Offsets are those of the file."""
    with pipe(MARK + b"dr\xff\n") as stdin, pytest.raises(UsageError, match="byte 0xff at offset 5"):
        next(read_lines([], stdin))


def test_a_file_of_prompts_is_cut_as_stdin_is(tmp_path: Path) -> None:
    """Prompts of --data: no byte order mark, Windows' line ends, and no line ends that only Unicode knows."""
    path = tmp_path / "prompts.txt"
    path.write_bytes(MARK + "one\r\n\ntwo\u2028still two\fand still\n".encode())

    assert read_prompts(str(path)) == ["one", "two\u2028still two\fand still"]
    path.write_bytes(MARK)
    with pytest.raises(UsageError, match="is empty"):
        read_prompts(str(path))


def test_lines_keep_leading_and_trailing_blanks() -> None:
    """Blanks may matter to a model, so only the line's end is cut off."""
    with pipe(b"  one \n") as stdin:
        assert list(read_lines([], stdin)) == ["  one "]


def test_an_argument_follows_each_line() -> None:
    """With --lines, the argument is put after every prompt as it would be after piped text."""
    with pipe(b"one\ntwo\n") as stdin:
        assert list(read_lines(["A", "summary:"], stdin)) == ["one\nA summary:", "two\nA summary:"]


def test_lines_are_handed_on_as_they_arrive() -> None:
    """The first prompt can be answered while the second isn't written yet."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin:
        prompts = read_lines([], stdin)
        os.write(writing, b"one\n")
        assert next(prompts) == "one"
        os.write(writing, b"two\n")
        assert next(prompts) == "two"
        os.close(writing)
        assert list(prompts) == []


def test_a_bad_byte_is_counted_from_the_beginning_of_stdin() -> None:
    """The offset of invalid UTF-8 on the third line counts the lines before, which were handed on by then."""
    data = "été\nzwei\n".encode() + b"dr\xff\n"
    with pipe(data) as stdin:
        prompts = read_lines([], stdin)
        assert [next(prompts), next(prompts)] == ["été", "zwei"]
        with pytest.raises(UsageError, match=rf"byte 0xff at offset {data.index(255)}"):
            next(prompts)


def test_bad_lines_stand_among_the_others() -> None:
    """Where each line is asked for, one that isn't UTF-8 comes in its place with its reason, and the next ones after it."""
    data = "été\n".encode() + b"dr\xff\n\nvier\n\xfe"
    with pipe(data) as stdin:
        found = list(each_line(stdin))
    assert [line for line in found if isinstance(line, str)] == ["été", "vier"]
    bad = [line for line in found if isinstance(line, BadLine)]
    assert [line.text for line in bad] == ["dr\ufffd", "\ufffd"]
    offsets = [data.index(255), data.index(254)]
    assert [str(line.error).rpartition(" ")[2] for line in bad] == list(map(str, offsets))


@pytest.mark.parametrize("data", [b"", b"\n \r\n\n"], ids=repr)
def test_no_lines_at_all_is_a_mistake(data: bytes) -> None:
    """--lines without a single prompt says so."""
    with pipe(data) as stdin, pytest.raises(UsageError, match="stdin is empty"):
        list(read_lines([], stdin))


def test_lines_need_no_dash() -> None:
    """--lines reads stdin by itself, so - beside it is a misunderstanding."""
    with pipe(b"one\n") as stdin, pytest.raises(UsageError, match="leave out -"):
        list(read_lines(["-"], stdin))


def test_a_closed_stdin_is_no_stdin(tmp_path: Path) -> None:
    """A stream closed before is like none."""
    with file(tmp_path, b"x") as stdin:
        pass

    assert read_prompt(["Once"], stdin) == "Once"
    assert read_prompt([], stdin) is None
