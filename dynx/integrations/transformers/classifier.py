"""Replaces a loaded classifier's `forward` by one whose rows exit early, under the promise of the classifier's profile.

Exits are attached to a copy of the model's modules that shares its tensors: the model itself stays as it is, and its own forward
does whatever dynx doesn't (`classifier_inputs`). Weights that were changed since, and others than the profile was
measured on, run there too.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.modeling_outputs import ModelOutput

from dynx.early_exit import assemble, make_plan
from dynx.early_exit.apply_profile import apply_profile, certify_full_depth
from dynx.early_exit.assembly import BlockBackend, LoadedClassifier, attach_exits, is_reference
from dynx.early_exit.labels import Labels
from dynx.early_exit.plan import ClassifierRequest
from dynx.early_exit.preprocessing import ImagePreprocessor, TextPreprocessor, token_limit
from dynx.early_exit.profile_data import MIN_EXPECTED_SPEEDUP
from dynx.early_exit.types import Receipt
from dynx.errors import InvalidInput, ModelError, NoProfileError, UnsupportedModelError
from dynx.integrations import origin
from dynx.integrations.transformers import classifier_inputs as inputs
from dynx.runtime import loading
from dynx.runtime.backends.registry import TORCH
from dynx.runtime.certify import simulate
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from dynx.early_exit.engine import Answer
    from dynx.early_exit.plan import ClassifierPlan
    from dynx.early_exit.preprocessing import Example
    from dynx.early_exit.profile_data import ExitProfile
    from dynx.early_exit.types import Guarantee

PROBE_TEXTS = ("one", "a little more of it", "Élan — 3 of 4, it's “fine”.")
"""Texts that two tokenizers must encode equally to count as the same."""

OPTIONS = frozenset(
    {
        *("form", "max_disagreement", "confidence", "within", "max_length", "batch_size", "profile", "require_profile"),
        "aggregation_strategy",
    }
)
"""Options of an attachment: fields of the request for a classifier."""


@dataclass(frozen=True)
class ClassifierStats:
    """What the latest call of an attached classifier cost, or the reason why the model's own forward ran."""

    rows: int = 0
    layers: int = 0
    """Block calls for all rows."""
    full: int = 0
    """Block calls that all rows take at full depth."""
    exit_counts: Counter[int] = field(default_factory=Counter)
    """Rows by the layer that they exited after; full depth is the model's number of layers."""
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason:
            return f"the model's own forward: {self.reason}"
        return f"{self.rows} rows in {self.layers} of {self.full} layers"


class ClassifierAttachment:
    """The `forward` of an attached classifier. Calls from several threads exit early one after the other."""

    __name__ = "forward"

    def __init__(self, model: Any, preprocessor: Any, options: Mapping[str, Any]) -> None:
        self.model, self.preprocessor, self.options = model, preprocessor, dict(options)
        self.stats: ClassifierStats | None = None
        """The latest call's statistics; None before the first."""
        self.warnings: list[str] = []
        """Messages about the profile."""
        self.why_full_depth: str | None
        """Why no call exits early; None where calls do."""
        self._lock = threading.Lock()
        self._speedups: dict[int, float] = {}
        self._assembly, self._exits, self.why_full_depth = self._set_up()
        self.receipt = Receipt(self._assembly.exit_model.depth if self._assembly else 0, guarantee=self.guarantee)
        """Counts and costs of all calls that exited early."""
        if self._assembly is not None and self._exits is not None:
            self._engines: dict[int, Any] = {}
            self._depths = self._exits.fitted.depths
            self._pairs = self._assembly.plan.request.form == "pair"
            self._marked = self._pairs and getattr(self._assembly.preprocessor, "marks_pairs", False)
            self._limit = getattr(self._assembly.preprocessor, "limit", None)
            self._pad = getattr(self._assembly.exit_model.model.config, "pad_token_id", None)
            self._state = origin.State(model)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a copy makes anew: its exits must run on its own weights."""
        return {"model": self.model, "preprocessor": self.preprocessor, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set a copy up, without exits: what is done to its weights isn't known."""
        vars(self).update(state)
        self.stats, self.warnings = None, []
        self._lock, self._speedups = threading.Lock(), {}
        self._assembly = self._exits = None
        self.why_full_depth = "it is a copy of an attached model; attach it too"
        self.receipt = Receipt(0, guarantee=None)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the original method, for those who inspect it."""
        return inspect.signature(functools.partial(type(self.model).forward, self.model))

    @property
    def guarantee(self) -> Guarantee | None:
        """The promise that rows exit under; None where none do."""
        return None if self._exits is None else self._exits.guarantee

    @property
    def depth(self) -> int | None:
        """Layers of the model; None where they aren't known."""
        return None if self._assembly is None else self._assembly.exit_model.depth

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the model's own `forward` does; its documentation holds."""
        own = type(self.model).forward
        given = _signature(own).bind(self.model, *args, **kwargs).arguments
        given.pop("self", None)
        given |= given.pop("kwargs", {})
        reason = self._reason(given)
        if reason is None:
            return self._early(given)
        self.stats = ClassifierStats(reason=reason)
        return own(self.model, *args, **kwargs)

    def _reason(self, given: Mapping[str, Any]) -> str | None:
        """Return why the model's own forward must run; None if it needn't."""
        if self._assembly is None or self._exits is None:
            return self.why_full_depth
        model, kind = self.model, self._assembly.exit_model.kind
        if reason := inputs.reason_of_call(model, given, kind):
            return reason
        main = given["pixel_values" if kind == "image" else "input_ids"]
        if kind == "text" and (
            reason := inputs.reason_of_texts(given, self._limit, self._pad, pairs=self._pairs, marked=self._marked)
        ):
            return reason
        if main.device != model.device:
            return "inputs and model lie on different devices"
        if reason := self._not_worth(len(main)):
            return reason
        if inputs.hooked(self._state.parts[1:]):
            return "hooks wait for the calls of its modules"
        return None if self._state.holds else "its weights were changed or moved since it was attached"

    def _not_worth(self, rows: int) -> str | None:
        """Return why exits don't pay for a batch of `rows`, by the costs that calibration measured."""
        speedup = self._speedup(rows)
        if speedup >= MIN_EXPECTED_SPEEDUP:
            return None
        return f"at batches of {rows} exits would make it {speedup:.2f}x as fast"

    def _speedup(self, rows: int) -> float:
        """Return how many times as fast exits make batches of `rows`, as calibration measured."""
        if self._exits is None:
            raise RuntimeError("there are no exits")
        if rows not in self._speedups:
            evidence, costs = self._exits.evidence, self._exits.fitted.costs_at(rows)
            found = simulate(self._exits.certificate.thresholds, evidence.scores, evidence.agree, costs)
            self._speedups[rows] = found.speedup
        return self._speedups[rows]

    def _early(self, given: Mapping[str, Any]) -> Any:
        """Answer rows with the engine."""
        began = time.perf_counter()
        rows = self._rows(given)
        with self._lock:
            answers = self._engine([row.size for row in rows]).window(rows)
            self._count(answers, began)
        logits = self._logits(answers, given).to(self.model.device, self.model.dtype)
        wanted = given.get("return_dict")
        if not (getattr(self.model.config, "return_dict", True) if wanted is None else wanted):
            return (logits,)
        return self._output_class(logits=logits)

    def _rows(self, given: Mapping[str, Any]) -> Sequence[Example]:
        """Return the rows of a call."""
        return inputs.image_rows(given) if "pixel_values" in given else inputs.text_rows(given)

    def _logits(self, answers: Sequence[Answer], given: Mapping[str, Any]) -> torch.Tensor:
        """Return the logits of answers to the rows of a call."""
        return torch.from_numpy(np.stack([answer.logits for answer in answers]))

    def _engine(self, sizes: Sequence[int]) -> Any:
        """Return an engine that computes rows of these sizes, in tokens, in batches of the number that wastes least."""
        assembly, exits = self._assembly, self._exits
        if assembly is None or exits is None:
            raise RuntimeError("there are no exits")
        most = min(len(sizes), assembly.batch)
        seconds = {n: cost.full for n, cost in exits.fitted.costs.items()}
        rows = rows_together(sizes, most, seconds, 1 / self._speedup(max(seconds)))
        if rows not in self._engines:
            self._engines[rows] = assembly.engine(exits.exits(), batch=rows)
        return self._engines[rows]

    def _count(self, answers: list[Answer], began: float) -> None:
        depth = self.receipt.depth
        exits = Counter(depth if a.exit is None else self._depths[a.exit] for a in answers)
        layers = sum(answer.layers for answer in answers)
        self.stats = ClassifierStats(len(answers), layers, depth * len(answers), exits)
        self.receipt.inputs += len(answers)
        self.receipt.repeated += sum(answer.repeated for answer in answers)
        self.receipt.layers += layers
        self.receipt.exit_counts += exits
        self.receipt.seconds += time.perf_counter() - began

    # Setting up.

    def _set_up(self) -> tuple[LoadedClassifier | None, ExitProfile | None, str | None]:
        """Find the profile and attach exits to a copy of the modules; return why there are none, where there are none."""
        request = self._request()
        if request is None:
            return self._without(
                "it wasn't loaded from a folder or the hub", require=self.options.get("require_profile")
            )
        try:
            plan = make_plan(request, warn=self.warnings.append)
        except NoProfileError:
            raise
        except InvalidInput:
            raise
        except ModelError as e:
            return self._without(f"its folder can't be read: {e}", require=request.require_profile)
        if plan.profile is None:
            refusal = (self.warnings or [plan.decisions.profile.reason])[-1]
            return self._without(f"no profile is used ({refusal})", require=request.require_profile)
        reason = origin.difference(self.model, plan.source.folder, lambda: self._reload(plan))
        if reason is None:
            reason = self._other_preprocessing(plan)
        if reason is not None:
            return self._without(reason, require=request.require_profile)
        try:
            assembly = self._assemble(plan)
        except UnsupportedModelError as e:
            return self._without(str(e), require=request.require_profile)
        if assembly.exit_profile is None:
            return self._without(assembly.why_full_depth, require=request.require_profile)
        return assembly, assembly.exit_profile, None

    def _without(self, reason: str, *, require: bool | None) -> tuple[None, None, str]:
        if require:
            raise NoProfileError(f"a profile is required: {reason}")
        return None, None, reason

    def _request(self) -> ClassifierRequest | None:
        name = origin.name_of(self.model)
        if name is None:
            return None
        model = self.model
        if self.options.get("form", "text") not in ("text", "pair"):
            raise InvalidInput(
                f"`form` {self.options['form']}: rows of a model's forward are texts, pairs of texts or images"
            )
        return ClassifierRequest(
            model=name,
            device=model.device.type,
            dtype="auto"
            if (model.device.type, model.dtype) == ("cpu", torch.float32)
            else str(model.dtype)[len("torch.") :],
            offline=True,
            trust_remote_code=origin.runs_own_code(model),
            **self.options,
        )

    def _reload(self, plan: ClassifierPlan) -> nn.Module:
        again: nn.Module = type(self.model).from_pretrained(plan.source.folder, local_files_only=True)
        return again

    def _other_preprocessing(self, plan: ClassifierPlan) -> str | None:
        """Return how the tokenizer differs from the one in the model's folder, which the profile's inputs went through."""
        if self.preprocessor is None:
            return None
        if plan.kind == "image":
            theirs = loading.load_image_processor(plan.source).to_dict()
            ours = self.preprocessor.to_dict()
            changed = sorted(k for k in theirs.keys() | ours.keys() if k[0] != "_" and theirs.get(k) != ours.get(k))
            return f"its image processor isn't the model's ({changed[0]} differs)" if changed else None
        own = loading.load_tokenizer(plan.source)
        limits = [token_limit(each, self.model) for each in (self.preprocessor, own)]
        if limits[0] != limits[1]:
            return f"its tokenizer cuts texts to {limits[0]} tokens, and the model's to {limits[1]}"
        texts = list(PROBE_TEXTS)
        same = own(texts)["input_ids"] == self.preprocessor(texts)["input_ids"]
        return None if same else "its tokenizer isn't the model's"

    def _assemble(self, plan: ClassifierPlan) -> LoadedClassifier:
        """Attach exits on the profile's backend, and certify them. Raises UnsupportedModelError.

        On PyTorch the blocks are the model's own. Other backends convert the same weights from the model's folder.
        """
        plan.decisions.threads = Decision(torch.get_num_threads(), "as PyTorch is set")
        if plan.backend != TORCH:
            assembly = assemble(plan, warn=self.warnings.append)
            self._output_class = _output_class(self.model, assembly.preprocessor.probe())
            return assembly
        clone = sharing_copy(self.model)
        ready = self.preprocessor
        if ready is None:
            ready = (loading.load_image_processor if plan.kind == "image" else loading.load_tokenizer)(plan.source)
        preprocessor, labels = self._prepared(plan, clone, ready)
        self._output_class = _output_class(self.model, preprocessor.probe())
        attached = attach_exits(clone, preprocessor)
        if attached.exits is not None:
            raise UnsupportedModelError(attached.exits.reason)
        blocks = BlockBackend(TORCH, plan.dtype)
        assembly = LoadedClassifier(plan, attached.model, preprocessor, labels, None, blocks)
        if not is_reference(assembly):
            assembly.certified, _ = certify_full_depth(assembly)
        assembly.exit_profile = apply_profile(assembly, self.warnings.append)
        return assembly

    def _prepared(self, plan: ClassifierPlan, model: Any, ready: Any) -> tuple[Any, Any]:
        """Return the preprocessor of a model's rows, and how its logits become answers; `ready` is what prepares its inputs."""
        if plan.kind == "image":
            return ImagePreprocessor(ready, model), Labels(model.config)
        pairs = plan.request.form == "pair"
        return TextPreprocessor(ready, model, plan.request.max_length, pairs=pairs), Labels(model.config)


def rows_together(sizes: Sequence[int], most: int, seconds: Mapping[int, float], share: float = 1.0) -> int:
    """Return how many rows to compute together, at most `most`: few need little padding, many share the cost of a batch.

    `sizes` are their numbers of tokens, `seconds` a row's seconds by batch size, as measured at full depth. Batches are of rows
    of similar size. Exits leave `share` of a row's work, but nearly all of a batch's: its last rows go on to the end.
    """
    few, many = min(seconds), max(seconds)
    if few == many or most < 2:
        return most
    overhead = (seconds[few] - seconds[many]) / (1 / few - 1 / many)
    row = share * (seconds[many] - overhead / many)
    if overhead <= 0 or row <= 0:
        return most
    ordered = sorted(sizes, reverse=True)
    token = row * len(sizes) / sum(sizes)

    def cost(rows: int) -> float:
        starts = range(0, len(ordered), rows)
        return sum(overhead + token * ordered[i] * min(rows, len(ordered) - i) for i in starts)

    return min((max(1, most >> halvings) for halvings in range(most.bit_length())), key=cost)


def sharing_copy(model: Any) -> Any:
    """Return a copy of a model's modules that holds the same tensors, without its hooks."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    clone = copy.deepcopy(model, memo)
    for module in clone.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return clone


def _output_class(model: Any, probe: Mapping[str, Any]) -> type[ModelOutput]:
    """Return the class of what a model's forward returns."""
    with torch.no_grad():
        out = type(model).forward(model, **probe)
    if not isinstance(out, ModelOutput) or not isinstance(out.get("logits"), torch.Tensor):
        raise UnsupportedModelError(f"{type(model).__name__} doesn't return logits by name")
    return type(out)


@functools.cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def attach_classifier(
    model: Any, tokenizer: Any = None, *, made: type[ClassifierAttachment] = ClassifierAttachment, **options: Any
) -> Any:
    """Make a loaded classifier's `forward` exit early, and return the model; `dynx.attach` documents the options."""
    if unknown := sorted(options.keys() - OPTIONS):
        raise InvalidInput(
            f"`{unknown[0]}` is no option of an attached classifier", hint=f"known: {', '.join(sorted(OPTIONS))}"
        )
    current = getattr(model, "__dict__", {}).get("dynx")
    if isinstance(current, ClassifierAttachment):
        wanted = {**current.options, **options}
        if current.depth is not None and tokenizer in (None, current.preprocessor) and wanted == current.options:
            return model
        tokenizer, options = tokenizer or current.preprocessor, wanted
        detach_classifier(model)
    _check(model)
    attachment = made(model, tokenizer, options)
    model.dynx = model.forward = attachment
    return model


def detach_classifier(model: Any) -> Any:
    """Give an attached classifier its original `forward` back, and return it."""
    if isinstance(getattr(model, "__dict__", {}).get("dynx"), ClassifierAttachment):
        del model.dynx
        if isinstance(vars(model).get("forward"), ClassifierAttachment):
            del model.forward
    return model


def is_classifier(model: Any) -> bool:
    """Whether a model is one of transformers' classifiers of texts or images, by its name."""
    return type(model).__name__.endswith(("ForSequenceClassification", "ForImageClassification"))


def _check(model: Any) -> None:
    """Raise UnsupportedModelError for a classifier whose `forward` can't be replaced."""
    name = type(model).__name__
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        raise UnsupportedModelError(f"{name} hands its calls on", hint="merge the adapters, and attach the model")
    if not hasattr(model, "config") or not hasattr(model, "main_input_name"):
        raise UnsupportedModelError(f"{name} is no model of transformers")
    if len({p.device for p in model.parameters()}) > 1:
        raise UnsupportedModelError(f"{name} lies on several devices")
    for path, module in model.named_modules():
        if "forward" in vars(module):
            where = f"{path or name}'s forward"
            raise UnsupportedModelError(f"{where} was replaced by another library", hint="attach the model before that")
