"""Offer the tasks of the command line as Python functions, and attach to models that are already loaded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput
from dynx.speculation.types import Receipt, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dynx.diffusion.generator import ImageGenerator
    from dynx.diffusion.types import Picture
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.plan import ClassifierDecisions
    from dynx.early_exit.types import Prediction, Ranking
    from dynx.early_exit.types import Receipt as ClassifierReceipt
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.chat import Message

WINDOW_INPUTS = 1024
"""Inputs that are sorted by length and classified together."""

WINDOW_GROUPS = 64
"""The same of inputs that are several pairs each."""


@dataclass(frozen=True)
class Answer:
    """Hold a continuation: its text, its token ids and what it cost."""

    text: str
    tokens: Sequence[int]
    stats: Receipt
    """Tokens, passes, acceptance, seconds and the guarantee of this run."""

    def __str__(self) -> str:
        return self.text


class TextGenerator:
    """Generate text with a loaded model and its drafters; `load_generator` makes one."""

    def __init__(self, assembly: LoadedGenerator) -> None:
        self.assembly = assembly

    def stream(self, prompt: str | Sequence[Message] | None = None, **options: Any) -> Iterator[str]:
        """Yield the text piece by piece as its tokens are verified; the options are those of `generate`."""
        for token in self.assembly.engine.start(self.request(prompt, **options)):
            if token.text:
                yield token.text

    def generate(self, prompt: str | Sequence[Message] | None = None, **options: Any) -> Answer:
        """Generate the whole continuation of `prompt`, or the answer to a conversation.

        A conversation is a list of messages with role and content, as `prompt` or as `messages`; with `chat` or `system` (a
        system message) a text is one too. Raises InputError for messages that the model's chat template doesn't take.
        Further options: `max_new_tokens` (256), `temperature` (0: greedy), `top_k`, `top_p`, `repetition_penalty`, `seed`, `stop`
        (a string or several). Raises UsageError for a prompt that is empty or doesn't fit.
        """
        run = self.assembly.engine.start(self.request(prompt, **options))
        text = "".join(token.text for token in run)
        return Answer(text, run.tokens, run.receipt())

    def request(
        self,
        prompt: str | Sequence[Message] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        chat: bool = False,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Request:
        """Build the engine's request for a prompt; the options and errors are those of `generate`."""
        from dynx.speculation.chat import encode, read_messages

        assembly = self.assembly
        if (prompt is None) == (messages is None):
            raise InvalidInput("give either a prompt or `messages`")
        given = messages if prompt is None else prompt
        if not isinstance(given, str):
            given = read_messages(given)
        ids, continues = encode(assembly.tokenizer, given, chat=chat, system=system, model=assembly.plan.source.name)
        return Request(
            ids,
            max_new_tokens,
            assembly.sampling(temperature, top_k, top_p, repetition_penalty, seed),
            assembly.end_tokens,
            (*((stop,) if isinstance(stop, str) else stop), *assembly.settings.stop),
            continues,
        )


def load_generator(model: str = "story", **settings: Any) -> TextGenerator:
    """Load a language model (shipped, a folder or a hub id) with its drafters and the profile that fits.

    `adapters` are LoRA adapters to fold in: folders or hub ids, each maybe with a weight after a colon ("./tone:0.5").
    Further options are those of the command line: `draft`, `lookup`, `device`, `dtype`, `threads`, `profile`, `offline`,
    `plain`, …; `chat` takes the profile measured on chats. Raises DynxError.
    """
    from pathlib import Path

    from dynx.runtime.threads import torch_threads
    from dynx.speculation import assemble, make_plan
    from dynx.speculation.plan import GeneratorRequest

    if (adapters := settings.get("adapters")) is not None:
        settings["adapters"] = (adapters,) if isinstance(adapters, str) else tuple(map(str, adapters))
    if settings.get("lookup") is not None:
        settings["lookup"] = Path(settings["lookup"])
    with torch_threads():
        return TextGenerator(assemble(make_plan(GeneratorRequest(model=model, **settings))))


def generate(
    prompt: str | Sequence[Message] | None = None, *, model: str = "story", draft: str = "auto", **options: Any
) -> Answer:
    """Continue `prompt`, or answer a conversation (`messages`); this loads the model each time, `load_generator` once."""
    chat = bool(options.get("chat")) or options.get("system") is not None or not isinstance(prompt, str)
    return load_generator(model, draft=draft, chat=chat).generate(prompt, **options)


class Classifier:
    """Classify texts or images with a loaded model and its early exits; `load_classifier` makes one."""

    def __init__(self, assembly: LoadedClassifier, audit: float = 0.0) -> None:
        from dynx.early_exit.group_classifier import make_classifier

        self.warnings: list[str] = []
        """Messages for the user, above all that an audit has found the guarantee violated."""
        self._assembly = assembly
        self._classifier = make_classifier(assembly, audit=audit, on_alarm=self.warnings.append)

    def classify(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Yield a Prediction for each text (for an image model each path), in order, as soon as its window is done.

        Of a model that labels tokens it is the Entities of each text. Inputs are as the form that the classifier was loaded with
        says. "pair": two texts in a tuple or list, or an object with "text" and "text_pair". "ranking": a query and its
        documents in a tuple or list, or an object with "query" and "documents", for each of which a Ranking is yielded. Raises
        InvalidInput for anything else.
        """
        stream = iter(inputs)
        size = WINDOW_INPUTS if self._assembly.plan.request.form in ("text", "pair") else WINDOW_GROUPS
        while window := [self._item(each) for each in islice(stream, size)]:
            yield from self._classifier.window(window)

    def rank(self, query: str, documents: Sequence[str]) -> Ranking:
        """Rank documents for a query: those of `top_k`, or all, from best to worst. The form must be "ranking"."""
        found: Ranking = next(self.classify([(query, documents)]))
        if found.error is not None:
            raise InvalidInput(found.error)
        return found

    def _item(self, value: Any) -> Any:
        """Return an input as the classifier takes it."""
        form = self._assembly.plan.request.form
        if form not in ("pair", "ranking"):
            return value
        from dynx.early_exit.items import as_pair, as_query

        item = as_pair(value) if form == "pair" else as_query(value)
        if item is None:
            wanted = {
                "pair": 'pair: two texts, or an object with "text" and "text_pair"',
                "ranking": 'query with documents: a text and a list of texts, or an object with "query" and "documents"',
            }
            raise InvalidInput(f"{value!r:.80} is no {wanted[form]}")
        return item

    @property
    def stats(self) -> ClassifierReceipt:
        """The cost of all inputs so far and the guarantee of their predictions."""
        return self._classifier.receipt

    @property
    def decisions(self) -> ClassifierDecisions:
        """Every setting with its value and the reason for it."""
        return self._assembly.decisions


def load_classifier(model: str = "mood", *, audit: float = 0.0, **settings: Any) -> Classifier:
    """Load a classifier of texts or images (shipped, a folder or a hub id) with the exits that its profile allows.

    `form` says what inputs are: "text" (or images), "pair", "ranking" (with `top_k`) or "zero-shot" (with `candidates`,
    `hypothesis`, `multi_label`). A model that labels tokens gives Entities, as `aggregation_strategy` says. Further options are
    those of the command line: `max_disagreement`, `confidence`, `batch_size`, `max_length`, `device`, `dtype`, `threads`,
    `profile`, `offline`, `plain`, … `audit` is the share of inputs that the full model checks. Raises DynxError.
    """
    from dynx.early_exit import assemble, make_plan
    from dynx.early_exit.plan import ClassifierRequest
    from dynx.runtime.threads import torch_threads

    if (candidates := settings.get("candidates")) is not None:
        several = candidates.split(",") if isinstance(candidates, str) else candidates
        settings["candidates"] = tuple(str(each).strip() for each in several)
    with torch_threads():
        return Classifier(assemble(make_plan(ClassifierRequest(model=model, **settings))), audit)


def classify(inputs: Sequence[Any], *, model: str = "mood", **options: Any) -> list[Prediction]:
    """Classify `inputs`; this loads the model each time, so for several calls use `load_classifier`."""
    return list(load_classifier(model, **options).classify(inputs))


def load_image_generator(model: str = "emoji", **settings: Any) -> ImageGenerator:
    """Load a text-to-image pipeline of diffusers (a folder or a hub id) with the steps that its profile allows.

    `draw(prompt, seed)` of the result returns a Picture: pixels (H, W, 3), and stats with the network calls made. Further
    options are those of the command line: `quality`, `steps`, `guidance`, `negative`, `size` (width, height), `device`, `dtype`,
    `threads`, `profile`, `offline`, `plain`, `lora` (files, each maybe with a weight after a colon), `image`, `strength` and
    `mask` (files to start from), … `draw_all` of the result draws several. Raises DynxError.
    """
    from dynx.diffusion import assemble, make_plan
    from dynx.diffusion.generator import ImageGenerator
    from dynx.diffusion.plan import ImageGeneratorRequest

    return ImageGenerator(assemble(make_plan(ImageGeneratorRequest(model=model, **settings))))


def draw(prompt: str, *, seed: int = 0, model: str = "emoji", **options: Any) -> Picture:
    """Draw one picture; this loads the pipeline each time, so for several use `load_image_generator`."""
    return load_image_generator(model, **options).draw(prompt, seed)


def attach(model: Any, tokenizer: Any = None, **options: Any) -> Any:
    """Make a loaded model of another library run on dynx in place, and return it; `model.dynx.stats` tells what a call cost.

    A language model of transformers: `generate` decodes with drafts. Options: `assistant` (a smaller model with the same
    vocabulary, which drafts), `lookup` (drafts are copied from the prompt and the answer too: True from the start, False never,
    by default once that pays), `profile` (an id, or "none"); `tokenizer` is for `stop_strings`.

    A classifier of transformers, a pipeline with one, or a cross-encoder: rows exit early under the promise of the profile.
    `tokenizer` is what its inputs go through (an image processor for images); by default the model's own. Options:
    `form`, `max_disagreement`, `confidence`, `within`, `max_length`, `batch_size`, `profile`, `require_profile`, as of
    `load_classifier`; with `form="pair"` the rows are pairs of texts.

    A pipeline of diffusers: it draws in the profile's steps. Options: `quality`, `profile`, `require_profile`.

    What dynx doesn't do runs as before, with the reason in the stats. Raises UnsupportedModelError with the reason for what
    can't be attached, NoProfileError where a profile is required and none fits.
    """
    from dynx.integrations import attach as integrations

    return integrations.attach(model, tokenizer, **options)


def detach(model: Any) -> Any:
    """Give an attached model its original methods back, and return it."""
    from dynx.integrations import attach as integrations

    return integrations.detach(model)
