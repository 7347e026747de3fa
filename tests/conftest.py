"""Makes `models.py` importable from the tests beside it; pytest's importlib mode leaves the path alone."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
