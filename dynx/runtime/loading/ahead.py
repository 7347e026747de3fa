"""Imports modules in a thread, while the caller does what needs none of them.

Modules that import each other must not be imported by two threads at a time: each would find the other's half. So whoever imports
torch or transformers meanwhile calls `wait` first.
"""

from __future__ import annotations

import contextlib
import importlib
import threading

_running: list[Ahead] = []


class Ahead:
    """An import that began in a thread. Importing the same modules after `join` costs nothing, and raises what failed here."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._thread = threading.Thread(target=self._run, name="imports", daemon=True)
        _running.append(self)
        self._thread.start()

    def _run(self) -> None:
        for module in self._modules:
            with contextlib.suppress(Exception):  # said where it is imported in earnest
                importlib.import_module(module)

    def join(self) -> None:
        """Wait for the end of the import, unless this is its thread."""
        if threading.current_thread() is not self._thread:
            self._thread.join()
            with contextlib.suppress(ValueError):  # another thread was first
                _running.remove(self)


def wait() -> None:
    """Wait for all imports that are under way."""
    for each in _running:
        each.join()
