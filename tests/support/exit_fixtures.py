"""Fixtures of the tests about exits. They import torch only when a test asks for one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dynx.early_exit.calibrate import Findings


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs and clock fixed."""
    from support.exits import fix_costs

    fix_costs(monkeypatch)


@pytest.fixture(scope="session")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model; tests copy it before they change it."""
    from support.exits import write_easy

    return write_easy(tmp_path_factory.mktemp("easy") / "easy")


@pytest.fixture(scope="session")
def findings(easy: Path) -> Iterator[Findings]:
    """What calibration finds for it."""
    from support.exits import EPS, assembled, fix_costs, learned

    with pytest.MonkeyPatch.context() as patch:
        fix_costs(patch)
        yield learned(assembled(easy, max_disagreement=EPS, profile="none"))


@pytest.fixture
def known(alone: None, findings: Findings) -> Findings:
    """The same, stored in this test's cache."""
    from support.exits import keep

    keep(findings)
    return findings
