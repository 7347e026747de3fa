"""Makes `models.py` importable from the tests beside it; pytest's importlib mode leaves the path alone.

And gives Ctrl-C back to tests that were started in the background: shells have them ignore it, and their children after them.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
