"""What draws the pictures of a batch: one generator for each size, all over the same loaded pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynx.cli.console import Terminal
    from dynx.cli.draw.drafts import Asked
    from dynx.cli.draw.requests import Item
    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.generator import ImageGenerator

    Size = tuple[int, int]


class Makers:
    """Generators by size. What a profile certifies is about one size, so each size has a plan of its own."""

    def __init__(self, asked: Asked, assembly: LoadedImageGenerator, terminal: Terminal, *, together: bool) -> None:
        from dynx.diffusion.generator import ImageGenerator

        self.asked, self._together = asked, together
        self.artist = ImageGenerator(assembly)
        """The generator of the batch's own size."""
        self._terminal = terminal
        self._others: dict[Size, ImageGenerator] = {}

    def asked_of(self, item: Item) -> Asked:
        """Return the settings of a picture."""
        return self.asked if item.size is None else replace(self.asked, size=item.size)

    def of(self, item: Item) -> ImageGenerator:
        """Return the generator of a picture's size, made when it is first needed. Raises InvalidInput for an impossible size."""
        size = item.size
        if size is None or size == self.artist.assembly.plan.request.size:
            return self.artist
        if size not in self._others:
            self._others[size] = self._made(size)
        return self._others[size]

    def _made(self, size: Size) -> ImageGenerator:
        from dynx.diffusion import assemble_over, make_plan
        from dynx.diffusion.generator import ImageGenerator

        own = self.artist.assembly
        plan = make_plan(replace(own.plan.request, size=size))
        terminal = self._terminal
        assembly = assemble_over(
            plan, own.engine.pipe, stages=terminal.status, warn=terminal.warn, together=self._together
        )
        terminal.clear_status()
        return ImageGenerator(assembly)
