"""Makes the package `support` importable for every test, and brings in its fixtures.

Also gives Ctrl-C back to tests that were started in the background: shells make such processes ignore it, and their children
inherit that.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds nothing to the path

pytest_plugins = ("support.cli_fixtures", "support.exit_fixtures")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
