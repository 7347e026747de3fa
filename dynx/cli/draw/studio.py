"""Draws the pictures of a run, several in a network call where that is faster, and prints each in its place."""

from __future__ import annotations

import itertools
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.cli.draw import output as report
from dynx.cli.draw.drafts import printable, table
from dynx.cli.draw.files import write
from dynx.cli.draw.makers import Makers
from dynx.cli.draw.png import encode
from dynx.cli.draw.preview import Screen, image
from dynx.errors import DeviceError, DynxError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

    from dynx.cli.console import Terminal
    from dynx.cli.draw.output import Drawn
    from dynx.cli.draw.requests import Batch, Item
    from dynx.cli.options.draw import Options
    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.generator import ImageGenerator
    from dynx.diffusion.similarity import Likeness
    from dynx.diffusion.types import Picture, Step

MAX_LABEL_CHARS = 30

WINDOW_PICTURES = 32
"""Most pictures that are drawn before those that need more steps are drawn again, which holds up the ones behind them."""


class Stop:
    """Context in which the first Ctrl-C requests a stop, and the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def __call__(self) -> bool:
        """Whether a stop is requested."""
        return self.pressed

    def __enter__(self) -> Stop:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


class Studio:
    """One run over all pictures."""

    def __init__(self, options: Options, terminal: Terminal) -> None:
        self._options, self._terminal = options, terminal
        json, png = options.json or options.jsonl, options.output == "-"
        self._screen = Screen(terminal, options.show, preview=options.preview, json=json, png=png)
        mode = report.JsonLines if options.jsonl else report.Document if options.json else report.Paths
        asked = len(options.finish or []) + len(options.prompt or [])
        self._several = options.lines or options.count > 1 or asked > 1
        self.printer: report.Printer = mode(terminal, several=self._several)
        self.seen = self.failed = self.unlike = 0
        self._said: set[str] = set()
        self._prompts = 0
        self._read: str | None = None
        self._stop = Stop()

    def work(self, batch: Batch, assembly: LoadedImageGenerator) -> None:
        """Draw the pictures of a batch. Raises KeyboardInterrupt after saving the picture that Ctrl-C interrupted."""
        makers = Makers(batch.asked, assembly, self._terminal, together=not self._options.preview)
        artist = makers.artist
        self._overlong(artist, batch.asked.negative, "the negative prompt")
        known = assembly.step_profile
        self._sighted = not assembly.engine.adapter.latent or (known is not None and known.colours is not None)
        if self._screen.previews and not self._sighted:
            self._terminal.notice("no preview: it needs a profile, which holds the map from latents to colours")
        for window in _windows(batch):
            self._draw_window(window, makers)
        if self._options.explain:
            pairs = [(knob, f"{d.value} ({d.reason})") for knob, d in assembly.decisions.items()]
            sys.stderr.write(table(pairs))

    def _begin(self, item: Item, artist: ImageGenerator) -> None:
        """Warn once per prompt about the part that isn't read."""
        if item.prompt != self._read:
            self._read, self._prompts = item.prompt, self._prompts + 1
            asked = self._options
            several = asked.lines or asked.finish or len(asked.prompt or []) > 1
            self._overlong(artist, item.prompt, f"prompt {self._prompts}" if several else "the prompt")

    def _fail(self, item: Item, error: Exception, makers: Makers) -> None:
        """Report a picture that failed, in its place."""
        from dynx.cli.main import debugging

        if not isinstance(error, DynxError) and debugging():
            raise error
        self._terminal.clear_status()
        self.seen += 1
        self.failed += 1
        failure = report.Failure(item, report.said(error), makers.artist, makers.asked_of(item), self._options.draft)
        self._no_picture(item.prompt, item.seed, failure.error)
        self.printer.failure(failure)

    def _no_picture(self, prompt: str, seed: int, error: str) -> None:
        about = f"of {printable(prompt)!r} " if prompt else ""
        self._terminal.warn(f"no picture {about}with seed {seed}: {error}")

    def _overlong(self, artist: ImageGenerator, text: str | None, what: str) -> None:
        from dynx.cli.classify.truncation import unread

        cut = unread(artist.assembly.engine.pipe, text) if text else None
        if cut is not None:
            self._terminal.warn(cut.words(what))

    def _draw_window(self, window: list[Item], makers: Makers) -> None:
        """Draw pictures that are there together; print them in their order, those that failed in their places."""
        wanted: dict[Any, list[Item]] = {}
        outcomes: dict[int, Drawn | Exception] = {}
        for item in window:
            if item.error is None:
                self._begin(item, makers.artist)
                wanted.setdefault(item.size, []).append(item)
            else:
                outcomes[item.index] = item.error
        with Stop() as self._stop:
            for items in wanted.values():  # of one size each
                if not self._stop.pressed:
                    self._draw_size(items, makers, outcomes, window)
            self._report(window, makers, outcomes, last=True)
        if self._stop.pressed:
            raise KeyboardInterrupt

    def _draw_size(
        self, items: list[Item], makers: Makers, outcomes: dict[int, Drawn | Exception], window: list[Item]
    ) -> None:
        """Draw pictures of one size, together or, where that fails, one by one."""
        try:
            self._draw(items, makers, outcomes, window)
        except (ModelError, DeviceError, BrokenPipeError):  # these aren't about one picture
            raise
        except Exception as e:
            if not self._several:
                raise
            undone = [item for item in items if item.index not in outcomes]
            if self._stop.pressed and undone:
                outcomes[undone[0].index] = e
            for item in undone:  # which of them it was about shows one by one
                if not self._stop.pressed:
                    self._draw_alone(item, makers, outcomes, window, e if len(items) == 1 else None)

    def _draw_alone(
        self,
        item: Item,
        makers: Makers,
        outcomes: dict[int, Drawn | Exception],
        window: list[Item],
        known: Exception | None,
    ) -> None:
        """Draw a picture by itself after one of its window failed; `known` is its error, where it was the only one."""
        try:
            if known is not None:
                raise known
            self._draw([item], makers, outcomes, window)
        except (ModelError, DeviceError, BrokenPipeError):
            raise
        except Exception as e:  # noqa: BLE001 - reported in the picture's place
            outcomes[item.index] = e
        self._report(window, makers, outcomes)

    def _draw(
        self, items: list[Item], makers: Makers, outcomes: dict[int, Drawn | Exception], window: list[Item]
    ) -> None:
        """Draw pictures of one size, and report each once those before it are reported."""
        artist, asked = makers.of(items[0]), makers.asked_of(items[0])
        stop, strips = self._stop, [list[str]() for _ in items]
        moves: list[Any] = []

        def show_step(place: int, step: Step) -> None:
            strip = strips[place]
            if step.index == 1:  # drawn again, in more steps
                strip.clear()
            strip.append(report.mark(step))
            skipped = strip.count("skipped") + strip.count("cached")
            words = f"{len(strip) - skipped} run, {skipped} skipped{', stopping' if stop.pressed else ''}"
            moves[-1](step.index, step.total, words, self._becoming(step, artist))
            self.printer.step(items[place].index, step)

        drawing = artist.draw_all(
            [(item.prompt, item.seed) for item in items], draft=self._options.draft, callback=show_step, stop=stop
        )
        for left in range(len(items), 0, -1):
            label = printable(items[len(items) - left].prompt)[:MAX_LABEL_CHARS] or artist.assembly.plan.source.name
            with self._screen.live(label, sighted=self._sighted) as move:
                moves[:] = [move]
                found = next(drawing, None)
            if found is None:
                return
            self._terminal.first("first picture")
            place, picture = found
            draft = self._options.draft and not picture.stats.plain
            item = items[place]
            outcomes[item.index] = report.Drawn(item.index, picture, artist, asked, draft, strips[place], item.source)
            self._report(window, makers, outcomes)

    def _report(
        self, window: list[Item], makers: Makers, outcomes: dict[int, Drawn | Exception], *, last: bool = False
    ) -> None:
        """Save and print the pictures at the beginning of `window` that are done, and take them out; at the `last`, all."""
        while window:
            outcome = outcomes.get(window[0].index)
            if outcome is None and not last:
                return
            item = window.pop(0)
            if isinstance(outcome, Exception):
                self._fail(item, outcome, makers)
            elif outcome is not None:
                try:
                    self._finish(outcome, item, outcome.artist)
                except (ModelError, DeviceError, BrokenPipeError):
                    raise
                except Exception as e:
                    if not self._several:
                        raise
                    self._fail(item, e, makers)

    def _finish(self, drawn: Drawn, item: Item, artist: ImageGenerator) -> None:
        picture = drawn.picture
        if self._options.verify and picture.error is None and not picture.stats.finished_early:
            self._terminal.status("drawing with the unmodified pipeline, to compare")
            drawn.likeness = likeness(artist, picture)
            self._terminal.clear_status()
            self.unlike += drawn.likeness.ssim < self._options.quality
        self._keep(drawn, item)
        self._aside(drawn)

    def _becoming(self, step: Step, artist: ImageGenerator) -> Any:
        """Return the preview of a step, if previews are shown."""
        if not (self._screen.previews and self._sighted) or step.clean is None:
            return None
        small = artist.preview(step.clean)
        return None if small is None else image(small[0])

    def _keep(self, drawn: Drawn, item: Item) -> None:
        """Save a picture, show it, and print its path."""
        picture = drawn.picture
        if picture.error is not None:
            self.seen += 1
            self.failed += 1
            self._no_picture(picture.prompt, picture.seed, picture.error)
            self.printer.result(drawn)
            return
        shown = image(picture.bytes8())
        data = encode(shown, report.facts(drawn))
        if item.path is None:
            write_bytes(data)
        else:
            write(item.path, data, force=self._options.force)
        self.seen += 1
        drawn.path = item.path
        self._screen.show(shown)
        if item.path is not None:
            self.printer.result(drawn)

    def _aside(self, drawn: Drawn) -> None:
        """Print warnings, cost and steps of a picture to stderr."""
        terminal, receipt = self._terminal, drawn.picture.stats
        if receipt.finished_early:
            done = receipt.run + receipt.skipped + receipt.cached
            terminal.warn(
                f"stopped after {done} of {receipt.planned} steps, at the estimate of the clean image; "
                "--finish draws it in full"
            )
        if drawn.likeness is not None:
            terminal.notice(report.verified(drawn))
        if drawn.picture.flagged:
            terminal.warn("the pipeline's safety checker blackened this picture")
        if self._options.draft and receipt.plain:
            self._once(f"drawn in full, not as a draft: {self._why_plain(drawn)}")
        elif not self._options.stats:
            for note in receipt.notes:
                self._once(note)
        if self._options.explain:
            unicode = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
            sys.stderr.write(f"{report.strip(drawn, unicode=unicode)}\n")
        if self._options.stats:
            sys.stderr.write(table(report.receipt_rows(drawn)))
        elif terminal.interactive:
            terminal.notice(report.receipt_line(drawn))

    def _once(self, words: str) -> None:
        """Print a line that holds for many pictures only once."""
        if words not in self._said:
            self._said.add(words)
            self._terminal.notice(words)

    def _why_plain(self, drawn: Drawn) -> str:
        if drawn.picture.stats.notes:
            return "; ".join(drawn.picture.stats.notes)
        artist = drawn.artist
        request = artist.request(drawn.picture.prompt, drawn.picture.seed)
        return artist.assembly.engine.plain_reason(request) or "the pipeline allows nothing else"


def _windows(batch: Batch) -> Iterator[list[Item]]:
    """Group pictures that are there without waiting for stdin."""
    items = iter(batch.items)
    while window := list(itertools.islice(items, 1)):
        while len(window) < WINDOW_PICTURES and batch.arrived():
            further = list(itertools.islice(items, 1))
            if not further:
                break
            window += further
        yield window


def likeness(artist: ImageGenerator, picture: Picture) -> Likeness:
    """Return the similarity of a picture to the pipeline's own run of its prompt and seed, which this draws."""
    from dynx.diffusion.similarity import compare

    request = replace(artist.request(picture.prompt, picture.seed), steps=None)
    return compare(picture.bytes8(), artist.assembly.engine.reference.draw(request)[0].bytes8())


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout at once. Raises DynxError where that fails."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as e:
        raise DynxError(f"can't write to stdout: {e.strerror or e}") from None
