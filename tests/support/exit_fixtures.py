"""Fixtures of the tests about exits, beside `cli_fixtures`; a test module asks for both with `pytest_plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.exits import EPS, assembled, fix_costs, keep, learned, write_easy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dynx.early_exit.calibrate import Findings


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs and clock fixed."""
    fix_costs(monkeypatch)


@pytest.fixture(scope="session")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model; tests copy it before they change it."""
    return write_easy(tmp_path_factory.mktemp("easy") / "easy")


@pytest.fixture(scope="session")
def findings(easy: Path) -> Iterator[Findings]:
    """What calibration finds for it."""
    with pytest.MonkeyPatch.context() as patch:
        fix_costs(patch)
        yield learned(assembled(easy, max_disagreement=EPS, profile="none"))


@pytest.fixture
def known(alone: None, findings: Findings) -> Findings:
    """The same, stored in this test's cache."""
    keep(findings)
    return findings
