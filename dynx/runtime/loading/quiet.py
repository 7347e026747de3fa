"""Keeps the libraries quiet while they are imported and while they load."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dynx.runtime import own_code
from dynx.runtime.lazy_imports import paused_gc
from dynx.runtime.loading import ahead

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' advice, progress bars and warnings off the user's terminal."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "transformers.utils.logging" in sys.modules:  # else it looks at the variable above when it is imported
            sys.modules["transformers.utils.logging"].disable_progress_bar()
        logging.getLogger("transformers").setLevel(logging.ERROR)
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # of every library, also of those that these try to import
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def loading(folder: Path, *, trusted: bool) -> Iterator[None]:
    """`quietly`, for loading what is in a folder: nothing is asked, and no code in it runs unless it is `trusted`."""
    ahead.wait()
    with quietly(), own_code.answering(folder, trusted=trusted):
        yield


@contextmanager
def importing() -> Iterator[None]:
    """`quietly`, for importing the libraries: as fast as that goes."""
    with paused_gc(), quietly():
        yield
