"""Imports modules in a thread, while the caller does what needs none of them."""

from __future__ import annotations

import contextlib
import importlib
import threading


class Ahead:
    """An import that began in a thread. Importing the same modules after `join` costs nothing, and raises what failed here."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._thread = threading.Thread(target=self._run, name="imports", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for module in self._modules:
            with contextlib.suppress(Exception):  # said where it is imported in earnest
                importlib.import_module(module)

    def join(self) -> None:
        """Wait for the end of the import."""
        self._thread.join()
