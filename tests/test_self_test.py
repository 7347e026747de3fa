"""`dynx bench --self-test`: real processes are judged; what breaks is a finding and exit code 3; the document has a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dynx import schemas
from dynx.cli import self_test
from dynx.cli.self_test import Bench, Broken, Ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

QUICK = (self_test.help_and_version, self_test.usage, self_test.nothing_to_do, self_test.no_model, self_test.error_json)
"""Checks that load no model."""


def wrong(dynx: Bench) -> None:
    """A wrong option succeeds"""
    dynx.run("--no-such-option").expect(0)


def crashing(dynx: Bench) -> None:
    """A check that breaks"""
    raise ZeroDivisionError("by hand")


def use(monkeypatch: pytest.MonkeyPatch, *checks: Callable[[Bench], None]) -> None:
    """Only these."""
    monkeypatch.setitem(self_test.run.__kwdefaults__, "checks", checks)


def test_what_holds_passes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each check on stdout, exit code 0."""
    use(monkeypatch, *QUICK)
    result = cli("bench", "--self-test")

    assert result.code == 0
    assert [line[0] for line in result.out.splitlines()] == ["✓"] * len(QUICK)
    assert result.err == "all 5 checks passed\n"


def test_what_does_not_hold_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding in a sentence, the other checks go on, and exit code 3; as a document too."""
    use(monkeypatch, wrong, crashing, self_test.usage)
    result = cli("bench", "--self-test", "--json")
    document = result.document

    assert (result.code, document["passed"]) == (3, False)
    assert result.error["message"] == "2 of 3 checks failed"
    assert schemas.complaint(document) is None
    assert [one["passed"] for one in document["checks"]] == [False, False, True]
    assert document["checks"][0]["problem"].startswith("exit code 2 and not 0: dynx: ")
    assert document["checks"][1]["problem"] == "ZeroDivisionError: by hand"


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        (Ended(0, b"x", b""), "stdout is not empty"),
        (Ended(0, b"", b""), "stderr is empty"),
        (Ended(0, b"", b"\x1b[1mx"), "escape sequences"),
        (Ended(0, b"", b"Traceback (most recent call last)"), "a traceback"),
        (Ended(1, b"", b"dynx: no model\n  a hint\n"), "exit code 1 and not 0: dynx: no model"),
        (
            Ended(1, b"", b'{"schema": "dynx.error/1", "message": "none"}\n'),
            'exit code 1 and not 0: .*"message": "none"',
        ),
    ],
)
def test_streams_are_judged(ended: Ended, problem: str) -> None:
    """Each way of breaking a contract has its sentence."""
    with pytest.raises(Broken, match=problem):
        ended.expect(0, out=False, err=True)


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        (b"{}\n", "isn't of the schema"),
        (b'{"schema": "dynx.generate/1"}\n', "not as dynx.generate/1 says"),
        (b'{"schema": NaN}\n', "NaN is not JSON"),
        (b"words\n", "is no JSON"),
    ],
)
def test_documents_are_judged(out: bytes, problem: str) -> None:
    """JSON of another schema, that breaks its own, or that is none."""
    with pytest.raises(Broken, match=problem):
        Ended(0, out, b"").documents("dynx.generate/1")


def test_every_check_says_what_it_promises(tmp_path: Path) -> None:
    """Its docstring is its line in the table; processes see no settings of the caller and an empty cache."""
    names = [one.__doc__ for one in self_test.CHECKS]
    assert all(names)
    assert len(set(names)) == len(names)
    environment = Bench(tmp_path).environment
    assert environment["DYNX_CACHE_DIR"].startswith(str(tmp_path))
    assert environment["HF_HUB_OFFLINE"] == "1"
