"""Answer rows of a table: functions for jobs, and for any library that maps over batches.

    from dynx.jobs.functions import Classify

    data.map(Classify("./model", column="body"), batched=True, batch_size=4096)                     # datasets
    data.map_batches(Classify, fn_constructor_kwargs={"model": "./model"}, batch_size=4096, …)      # Ray Data

Making one is cheap and so is sending it to another process: the model is loaded with the first batch. A batch of a thousand rows
or more keeps what sorting by length and sharing prompts save. A row that can't be answered has a reason in `error`, and raises
nothing.
"""

from __future__ import annotations

import io
import math
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dynx.early_exit.items import Pair, as_pair
from dynx.errors import InvalidInput
from dynx.jobs.row_function import RowFunction, seed_of
from dynx.runtime.inputs import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.engine import Answer, Engine, Exits
    from dynx.early_exit.segments.engine import SegmentEngine

WINDOW_ROWS = 1024
"""Rows that are sorted by length and classified together."""

AUDIT_SEED = 0
"""Seed of the draw of audited rows: the same in every run."""


class Classify(RowFunction):
    """Classify texts, pairs of texts, or images by their paths; the options are those of `dynx.load_classifier`.

    With `form="pair"` each value of the column is a tuple or list of two texts.
    """

    labels: ClassVar[Mapping[str, str]] = {"label": "string", "score": "double"}
    entities: ClassVar[Mapping[str, str]] = {"entities": "json"}
    """The columns of answers, by what the model labels."""

    added: ClassVar[Mapping[str, str]] = {
        "exit": "int32",
        "layers": "int32",
        "truncated": "bool",
        "audited": "bool",
        "agrees": "bool",
    }
    totals: ClassVar[tuple[str, ...]] = ("layers", "truncated")
    grouped: ClassVar[bool] = False
    """Whether an input is several pairs."""

    def __init__(self, model: str = "mood", *, audit: float = 0.0, **options: Any) -> None:
        super().__init__(model, **options)
        self.audit = audit
        """Share of the rows that the full model answers too; the rows are drawn by their numbers, so the keys must be numbers."""
        self._kind: str | None = None
        """What the model labels, once that is known."""
        self.full_depth = False
        """Whether all layers run from now on."""
        self.reference = False
        """Whether it is the full float32 model that runs them, whatever else computes here."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns that it adds, and their types by Arrow's names."""
        self._kind = self._kind or self._make_plan(lambda _: None).kind
        return {**(self.entities if self._kind == "tokens" else self.labels), **self.added}

    def _make_plan(self, warn: Callable[[str], None]) -> Any:
        from dynx.early_exit import make_plan
        from dynx.early_exit.items import GROUPED
        from dynx.early_exit.plan import ClassifierRequest

        request = ClassifierRequest(self.model, **self.options)
        if (request.form in GROUPED) != self.grouped:
            other = "Classify" if self.grouped else "ClassifyGroups"
            raise InvalidInput(f"`form` {request.form}: `{other}` answers such inputs")
        return make_plan(request, warn=warn)

    def _open(self) -> None:
        from dynx.early_exit import assemble
        from dynx.early_exit.group_classifier import make_classifier
        from dynx.runtime.hashing import hash_json
        from dynx.runtime.threads import torch_threads

        with torch_threads():
            self.assembly: LoadedClassifier = assemble(self._plan())
        plan, known = self.assembly.plan, self.assembly.exit_profile or self.assembly.group_profile
        classifier = make_classifier(self.assembly)
        promise, at_full_depth = classifier.receipt.guarantee, classifier.full_guarantee
        self.identity = {
            "model": plan.key.model,
            "dtype": plan.dtype,
            "weights": self.assembly.block_backend.precision,
            "guarantee": None if promise is None else promise.json(),
            "full_depth_guarantee": None if at_full_depth is None else at_full_depth.json(),
        }
        exits = None if known is None else known.exits()
        if known is not None and exits is not None:
            heads = {name: array.tolist() for name, array in known.fitted.heads.to_arrays().items()}
            self.identity["exits"] = hash_json([list(known.fitted.depths), heads])
            self.identity["thresholds"] = [_finite(t) for t in exits.thresholds.tolist()]
        self._begin(classifier, exits)

    def _begin(self, classifier: Any, exits: Any) -> None:
        """Take what answers, as the profile certifies."""
        self._reference: Any = None
        self._set_exits(exits)

    def __call__(self, batch: Any) -> Any:
        """Return the batch with labels. Raises InvalidInput for an audit without `key`, a column of row numbers."""
        if self.audit and self.key is None:
            raise InvalidInput("`audit` draws rows by their numbers, which a column must hold: `key`")
        return super().__call__(batch)

    def set_thresholds(self, thresholds: Sequence[float] | None) -> None:
        """Let rows exit at these thresholds of the profile's exits; None: never."""
        self.open()
        known = self.assembly.exit_profile
        self._set_exits(None if known is None or thresholds is None else known.fitted.exits(thresholds))

    def _set_exits(self, exits: Exits | None) -> None:
        self._depths = () if exits is None else exits.depths
        self._engine: Engine[Any] | SegmentEngine[Any] = self.assembly.engine(exits=exits)
        self._full: Engine[Any] | SegmentEngine[Any] = self.assembly.engine(exits=None)

    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Classify rows, the audited ones also by the full model."""
        return [
            row
            for at in range(0, len(values), WINDOW_ROWS)
            for row in self._window(values[at : at + WINDOW_ROWS], keys[at : at + WINDOW_ROWS])
        ]

    def _window(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        from dynx.early_exit.audit import audited
        from dynx.early_exit.preprocessing import Example

        items = self._items(values)
        usable = [i for i, item in enumerate(items) if item is not None]
        out: list[dict[str, Any]] = [{"error": f"not {self._wanted}"} for _ in values]
        good = []
        for i, row in zip(usable, self.assembly.preprocessor.rows([items[i] for i in usable]), strict=True):
            if isinstance(row, Example):
                good.append((i, row))
            else:
                out[i] = {"error": row}
        if not good:
            return out
        engine = self._engine
        if self.full_depth:
            engine = self._truth().engine if self.reference else self._full
        answers: list[Answer] = engine.window([row for _, row in good])
        labels = self.assembly.labels
        found: Sequence[Any] = labels.read([row for _, row in good], answers, self._depths)
        for (i, row), answer in zip(good, found, strict=True):
            out[i] = {
                **_cells(answer),
                "exit": answer.exit,
                "layers": answer.layers,
                "truncated": row.truncated,
                "audited": False,
            }
        drawn = [
            (n, i) for n, (i, _) in enumerate(good) if self.audit and audited(int(keys[i]), self.audit, AUDIT_SEED)
        ]
        if drawn and engine.exits is not None:
            truth = self._truth().read([items[i] for _, i in drawn])
            tolerance = self.assembly.plan.request.within or 0.0
            own = [good[n][1] for n, _ in drawn]
            agree = labels.same(own, [answers[n] for n, _ in drawn], truth[0], truth[1], tolerance)
            for (_, i), same in zip(drawn, agree, strict=True):
                out[i] |= {"audited": True, "agrees": same}
        return out

    def sample_size(self, total: int) -> int:
        """Return how many of `total` rows to draw for a certificate; 0: they are too few, or there are no exits to certify."""
        from dynx.early_exit.sample_certificate import sample_size

        self.open()
        request = self.assembly.plan.request
        if self.assembly.plan.kind == "tokens":
            raise InvalidInput("a job certifies labels, and this model labels tokens; `audit` checks its answers")
        return sample_size(total, request.max_disagreement, request.delta) if self.assembly.exit_profile else 0

    def sample_differences(self, values: Sequence[Any], truth: Any) -> Any:
        """Return what a sample shows of each rule, by the logits of the full model in `truth`, or by this machine's own."""
        from dynx.early_exit.sample_certificate import sample_differences

        empty = Pair("", "") if self.assembly.plan.request.form == "pair" else ""
        items = [empty if item is None else item for item in self._items(values)]
        return vars(sample_differences(self.assembly, items, truth))

    @property
    def _wanted(self) -> str:
        if self.assembly.plan.request.form == "pair":
            return "a pair of texts"
        return "the path of an image" if self.assembly.plan.kind == "image" else "a text"

    def _items(self, values: Sequence[Any]) -> list[Any]:
        """Return values as the preprocessor takes them; None for those that it can't take."""
        if self.assembly.plan.request.form == "pair":
            return [as_pair(value) for value in values]
        if self.assembly.plan.kind == "image":
            return [Path(value) if isinstance(value, str | Path) else None for value in values]
        return [value if isinstance(value, str) else None for value in values]

    def _truth(self) -> Any:
        from dynx.early_exit.assembly import Reference

        self._reference = self._reference or Reference(self.assembly)
        return self._reference


def _cells(answer: Any) -> dict[str, Any]:
    """Return the cells of an answer: label and score, or the entities of a text."""
    from dynx.early_exit.types import Entities

    if isinstance(answer, Entities):
        return {"entities": [each.json() for each in answer.entities]}
    return {"label": answer.label, "score": _finite(answer.score)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Generate(RowFunction):
    """Continue prompts, or answer lists of messages; the options are those of `load_generator` and of its `generate`.

    With `seed` a row's text depends on the seed and on the row's key alone: the value of the column `key`, or else its prompt.
    """

    added: ClassVar[Mapping[str, str]] = {
        "text": "string",
        "tokens": "int32",
        "finish_reason": "string",
        "prompt_tokens": "int32",
    }
    profile_decides: ClassVar[bool] = False
    timed: ClassVar[bool] = True
    totals: ClassVar[tuple[str, ...]] = ("tokens", "prompt_tokens", "passes")

    def __init__(
        self,
        model: str = "story",
        *,
        column: str = "prompt",
        key: str | None = None,
        batch: int | None = None,
        seed: int | None = None,
        decoding: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, column=column, key=key, **options)
        self.batch, self.seed, self.decoding = batch, seed, dict(decoding or {})
        self.expected_rows = 0
        """Rows that usually come together, by which the size of batches is chosen; 0: as many as the first time."""

    def prepare(self, warn: Callable[[str], None] = lambda _: None) -> list[str]:
        """Take the profile along, and the backend: chosen by timing on each machine, it could decide near ties differently."""
        decisions = super().prepare(warn)
        if self.options.get("backend", "auto") == "auto":
            self.options["backend"] = self._make_plan(lambda _: None).backend
        return decisions

    def _make_plan(self, warn: Callable[[str], None]) -> Any:
        from dynx.speculation import make_plan
        from dynx.speculation.plan import GeneratorRequest

        return make_plan(GeneratorRequest(self.model, **self.options), warn=warn)

    def _open(self) -> None:
        from dynx.api import TextGenerator
        from dynx.runtime.threads import torch_threads
        from dynx.speculation import assemble

        with torch_threads():
            self._assembly = assemble(self._plan())
        self._generator = TextGenerator(self._assembly)
        plan = self._assembly.plan
        self.identity = {
            "model": plan.key.model,
            "dtype": plan.dtype,
            "quantize": plan.key.quantization,
            "backend": plan.backend,
        }
        self._choice: Any = None
        self._chosen_for = 0  # rows up to which the choice holds

    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Answer prompts, in batches where those are faster."""
        out: list[dict[str, Any]] = [{} for _ in values]
        self._choose(max(len(values), self.expected_rows))
        if self._choice.sequences > 1 and len(values) >= self._choice.min_waiting:
            self._together(values, keys, out)
            return out
        for i, value in enumerate(values):
            try:
                run = self._assembly.engine.start(self._request(value, keys[i]))
            except InputError as e:
                out[i] = {"error": str(e)}
            else:
                out[i] = _answered("".join(token.text for token in run), run)
        return out

    def _choose(self, waiting: int) -> None:
        """Choose the size of batches by the number of waiting rows, unless it was chosen for as many."""
        from dynx.speculation.batch_size import choose

        if self._choice is None or waiting > self._chosen_for:
            wanted = int(self.decoding.get("max_new_tokens", 256))
            self._choice = choose(self._assembly, asked=self.batch, waiting=waiting, tokens=wanted)
            self._chosen_for = min(waiting * 4, self._choice.until)

    def measure_costs(self, rows: int) -> Any:
        """Choose the size of batches for shards of `rows`, and return it with the times of their passes, as JSON.

        It is timed where no profile of this machine tells it. None: each worker finds out by itself.
        """
        self.open()
        self._choose(rows)
        choice = self._choice
        if choice.costs is None or choice.engine not in (None, self._assembly.engine):
            return None
        costs = {"target": choice.costs.target.to_json(), "draft": None}
        if choice.costs.draft.known:
            costs["draft"] = choice.costs.draft.to_json()
        decision = {"sequences": choice.sequences, "reason": choice.decision.reason}
        return {**decision, "min_waiting": choice.min_waiting, "rows": self._chosen_for, "costs": costs}

    def use_costs(self, costs: Any) -> None:
        """Take the size of batches and the times of their passes from a machine like this one."""
        if costs is None:
            return
        from dynx.runtime.decision import Decision
        from dynx.speculation.batch_size import BatchChoice, from_json

        self.open()
        decision = Decision(int(costs["sequences"]), str(costs["reason"]))
        self._choice = BatchChoice(decision, int(costs["min_waiting"]), from_json(costs["costs"]))
        self._chosen_for = int(costs["rows"])

    def _together(self, values: Sequence[Any], keys: Sequence[int | str], out: list[dict[str, Any]]) -> None:
        from dynx.speculation.batching import Batch

        waiting = deque(range(len(values)))
        runs: deque[tuple[int, Any]] = deque()

        def more() -> Any:
            while waiting:
                i = waiting.popleft()
                try:
                    runs.append((i, batch.sequence(self._request(values[i], keys[i]))))
                except InputError as e:
                    out[i] = {"error": str(e)}
                else:
                    return runs[-1][1]
            return None

        engine = self._choice.engine or self._assembly.engine
        plain = bool(self.options.get("plain"))
        batch = Batch(engine, self._choice.sequences, more=more, costs=self._choice.costs, speculate=not plain)
        batch.step()
        while runs:
            i, run = runs.popleft()
            out[i] = _answered("".join(token.text for token in run), run)
            if not runs:
                batch.step()

    def _request(self, value: Any, key: int | str) -> Any:
        if isinstance(value, str) and not value.strip():
            raise InputError("an empty prompt")
        seed = None if self.seed is None else seed_of(self.seed, key)
        return self._generator.request(value, seed=seed, **self.decoding)


def _answered(text: str, run: Any) -> dict[str, Any]:
    receipt = run.receipt()
    return {
        "text": text,
        "tokens": receipt.tokens,
        "finish_reason": receipt.finish_reason,
        "prompt_tokens": receipt.prompt_tokens,
        "passes": receipt.target_forwards,
    }


class Draw(RowFunction):
    """Draw a picture for each prompt, as the bytes of a PNG; the options are those of `load_image_generator`."""

    added: ClassVar[Mapping[str, str]] = {
        "picture": "binary",
        "seed": "int64",
        "steps": "int32",
        "calls": "int32",
        "flagged": "bool",
    }
    totals: ClassVar[tuple[str, ...]] = ("steps", "calls")

    def __init__(
        self, model: str = "emoji", *, column: str = "prompt", key: str | None = None, seed: int = 0, **options: Any
    ) -> None:
        draft = options.pop("draft", False)
        super().__init__(model, column=column, key=key, **options)
        self.seed, self.draft = seed, draft

    def _make_plan(self, warn: Callable[[str], None]) -> Any:
        from dynx.diffusion import make_plan
        from dynx.diffusion.plan import ImageGeneratorRequest

        return make_plan(ImageGeneratorRequest(self.model, **self.options), warn=warn)

    def _open(self) -> None:
        from dynx.diffusion import assemble
        from dynx.diffusion.generator import ImageGenerator

        assembly = assemble(self._plan(), together=True)
        self._generator = ImageGenerator(assembly)
        plan, promise = assembly.plan, self._generator.guarantee
        self.identity = {
            "model": plan.key.model,
            "dtype": plan.dtype,
            "profile": None if assembly.step_profile is None else plan.profile_id,
            "guarantee": None if promise is None else promise.json(),
        }

    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Draw the pictures, several in a network call where that is faster."""
        texts = [i for i, value in enumerate(values) if isinstance(value, str)]
        out: list[dict[str, Any]] = [{"error": "not a text"} for _ in values]
        wanted = [(values[i], seed_of(self.seed, keys[i])) for i in texts]
        for place, picture in self._generator.draw_all(wanted, draft=self.draft):
            out[texts[place]] = self._answer(picture, wanted[place][1])
        return out

    def _answer(self, picture: Any, seed: int) -> dict[str, Any]:
        from PIL import Image

        if picture.error is not None:
            return {"error": picture.error}
        png = io.BytesIO()
        Image.fromarray(picture.bytes8()).save(png, "PNG")
        stats = picture.stats
        return {
            "picture": png.getvalue(),
            "seed": seed,
            "steps": stats.run,
            "calls": stats.calls,
            "flagged": picture.flagged,
        }
