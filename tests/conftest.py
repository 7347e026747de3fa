"""Makes the package `support` importable for every test, and brings in its fixtures.

Also gives Ctrl-C back to tests that were started in the background: shells make such processes ignore it, and their children
inherit that.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds nothing to the path

pytest_plugins = ("support.cli_fixtures", "support.exit_fixtures")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW = (
    "recipes/",
    "test_readme.py",
    "bench/test_arms_",
    "cli/test_bench",
    "cli/test_calibrate",
    "cli/test_classify.py",
    "cli/test_contracts.py",
    "cli/test_draw.py",
    "cli/test_generate.py",
    "cli/test_jobs.py",
    "cli/test_processes.py",
    "cli/test_reference.py",
    "cli/test_verify.py",
    "diffusion/test_backends.py",
    "diffusion/test_calibrate.py",
    "diffusion/test_saving.py",
    "early_exit/test_backends.py",
    "early_exit/test_calibrate.py",
    "early_exit/test_costs.py",
    "early_exit/test_sample_certificate.py",
    "gpu/test_check.py",
    "jobs/test_driver.py",
    "jobs/test_functions.py",
    "lossless/test_attach.py",
    "lossless/test_model_settings.py",
    "lossless/test_sampling.py",
    "lossless/test_state.py",
    "lossless/test_weights_used.py",
    "runtime/test_certify.py",
    "runtime/test_cuda_graphs.py",
    "runtime/test_lazy_imports.py",
    "runtime/test_network.py",
    "runtime/test_openvino.py",
    "runtime/test_own_code.py",
    "runtime/test_torch_compile.py",
    "speculation/test_calibrate.py",
    "speculation/test_cold_start.py",
    "speculation/test_equivalence.py",
)
"""Beginnings of the files that compile, convert, calibrate or start processes: they take most of the time."""


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
