"""Classify a stream of inputs that are several pairs each: rank documents, or choose among candidate labels.

It is to groups what `classifier` is to single inputs: windows in order, a receipt, and an audit of the guarantee.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.assembly import Reference, is_reference
from dynx.early_exit.audit import Audit, audited
from dynx.early_exit.classifier import SEED, Classifier
from dynx.early_exit.cross_encoder import read_cross_encoder
from dynx.early_exit.group_setup import engine_of
from dynx.early_exit.groups.engine import full_depth_answers
from dynx.early_exit.groups.rows import groups_of, pairs_of
from dynx.early_exit.groups.values import rule_of, values_of
from dynx.early_exit.items import GROUPED
from dynx.early_exit.types import EXACT_GUARANTEE, Guarantee, Prediction, RankedDocument, Ranking, Receipt
from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.early_exit.assembly import AnyEngine, LoadedClassifier
    from dynx.early_exit.groups.engine import GroupAnswer, GroupEngine, GroupExits
    from dynx.early_exit.groups.rows import Group
    from dynx.early_exit.preprocessing import Example

WINDOW_PAIRS = 2048
"""Pairs that are sorted by length and classified together, unless one input has more."""


class GroupClassifier:
    """A model that answers inputs of several pairs; `on_alarm` is called once with the audit's alarm, if any."""

    def __init__(
        self, assembly: LoadedClassifier, *, audit: float = 0.0, on_alarm: Callable[[str], None] = lambda _: None
    ) -> None:
        if not 0 <= audit <= 1:
            raise InvalidInput(f"`audit` {audit:g} is not a share between 0 and 1")
        request = assembly.plan.request
        self.assembly = assembly
        self.audit = Audit(request.max_disagreement, request.delta) if audit else None
        self.receipt = Receipt(assembly.exit_model.depth)
        self._request, self._rule = request, rule_of(request)
        self._values = values_of(assembly.exit_model.model.config, request)
        self._encoder = read_cross_encoder(assembly.plan.source)
        self._share, self._on_alarm = audit, on_alarm
        self._reference: Reference | None = None
        self._number = 0  # of the next input
        self._full: AnyEngine = assembly.engine()
        known = assembly.group_profile
        self.set_exits(known.exits() if known else None, known.guarantee if known else self.full_guarantee)

    def set_exits(self, exits: GroupExits | None, guarantee: Guarantee | None) -> None:
        """Switch to other exits, None for none."""
        self._engine: GroupEngine | None = None if exits is None else engine_of(self.assembly, exits)
        self._depths = () if exits is None else exits.depths
        self.receipt.guarantee = guarantee

    @property
    def full_guarantee(self) -> Guarantee | None:
        """The guarantee without exits: exact for the reference itself, and what a profile certifies for another model."""
        return EXACT_GUARANTEE if is_reference(self.assembly) else self.assembly.certified

    @property
    def exiting(self) -> bool:
        """Whether any row may leave early."""
        return self._engine is not None

    def window(self, items: Sequence[Any]) -> list[Any]:
        """Answer the next inputs, in order: a `Ranking` for each query, or a `Prediction` for each text.

        DeviceError: out of memory.
        """
        began = time.perf_counter()
        out: list[Any] = []
        at = 0
        counts = [len(pairs_of(item, self._request)) for item in items]
        while at < len(items):
            end, pairs = at + 1, counts[at]
            while end < len(items) and pairs + counts[end] <= WINDOW_PAIRS:
                pairs += counts[end]
                end += 1
            out += self._part(items[at:end])
            at = end
        self.receipt.seconds += time.perf_counter() - began
        return out

    def _part(self, items: Sequence[Any]) -> list[Any]:
        groups = groups_of(items, self._request, self.assembly.preprocessor)
        good = [i for i, group in enumerate(groups) if group.error is None]
        answers = dict(zip(good, self._answers([groups[i].rows for i in good]), strict=True))
        out = [self._read(items[i], group, answers.get(i)) for i, group in enumerate(groups)]
        self._count(groups, answers)
        first, self._number = self._number, self._number + len(items)
        self._audit_window(items, answers, first)
        return out

    def _answers(self, groups: Sequence[Sequence[Example]]) -> list[GroupAnswer]:
        if self._engine is not None:
            return self._engine.window(groups)
        return self._at_full_depth(self._full, groups)

    def _at_full_depth(self, engine: AnyEngine, groups: Sequence[Sequence[Example]]) -> list[GroupAnswer]:
        def logits(rows: Sequence[Example]) -> list[Any]:
            return [answer.logits for answer in engine.window(rows)]

        return full_depth_answers(logits, groups, self._rule, self._values, self.receipt.depth)

    def _read(self, item: Any, group: Group, answer: GroupAnswer | None) -> Any:
        """Make the result of an answer."""
        ranking = self._request.form == "ranking"
        if answer is None:
            error = group.error or "no answer"
            return Ranking.failed(error) if ranking else Prediction.failed(error)
        return self._ranking(answer) if ranking else self._prediction(answer)

    def _ranking(self, answer: GroupAnswer) -> Ranking:
        scores = self._encoder.score(answer.values)
        chosen = np.flatnonzero(answer.chosen)
        order = chosen[np.argsort(-answer.values[chosen], kind="stable")]
        documents = [RankedDocument(int(i), float(scores[i])) for i in order]
        return Ranking(documents, len(answer.values), answer.layers)

    def _prediction(self, answer: GroupAnswer) -> Prediction:
        """Return label and scores; scores of labels that left early come from the estimates of their exits."""
        values, names = answer.values, self._request.candidates
        if self._request.each_label_alone:
            scores = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
        else:
            e = np.exp(values - values.max())
            scores = e / e.sum()
        pairs = list(zip(names, scores.tolist(), strict=True))
        deepest = int(answer.exits.max())
        after = self._depths[deepest] if deepest < len(self._depths) else None
        if self._request.multi_label:
            label = ",".join(name for name, chosen in zip(names, answer.chosen, strict=True) if chosen)
            return Prediction(label, float(scores.max()), pairs, after, answer.layers)
        best = int(np.flatnonzero(answer.chosen)[0]) if answer.chosen.any() else int(values.argmax())
        return Prediction(names[best], float(scores[best]), pairs, after, answer.layers)

    def _count(self, groups: Sequence[Group], answers: dict[int, GroupAnswer]) -> None:
        receipt = self.receipt
        receipt.inputs += len(groups)
        receipt.errors += sum(group.error is not None for group in groups)
        receipt.truncated += sum(group.truncated for group in groups)
        receipt.rows += sum(len(answer.values) for answer in answers.values())
        receipt.layers += sum(answer.layers for answer in answers.values())
        for answer in answers.values():
            receipt.exit_counts += Counter(
                self._depths[k] if k < len(self._depths) else receipt.depth for k in answer.exits.tolist()
            )

    def _audit_window(self, items: Sequence[Any], answers: dict[int, GroupAnswer], first: int) -> None:
        """Compare the audited share with the full model, and turn exits off once the alarm is raised."""
        if self.audit is None or not self.exiting or self._rule is None:
            return
        drawn = [i for i in answers if audited(first + i, self._share, SEED)]
        if not drawn:
            return
        self._reference = self._reference or Reference(self.assembly)
        before = self._reference.block_calls
        for i in drawn:
            full = self._values(self._reference.logits(pairs_of(items[i], self._request)))
            every = np.ones((1, len(full)), dtype=bool)
            agree = bool(self._rule.agrees(answers[i].chosen[None], full[None], every)[0])
            if self.audit.update(not agree):
                self.set_exits(None, None)
                self._full = self._reference.engine
                self._on_alarm(f"{self.audit}; from here on every answer is the full model's")
                break
        self.receipt.audit_layers += self._reference.block_calls - before


AnyClassifier = Classifier | GroupClassifier


def make_classifier(
    assembly: LoadedClassifier, *, audit: float = 0.0, on_alarm: Callable[[str], None] = lambda _: None
) -> AnyClassifier:
    """Make the classifier of the assembly's form of inputs."""
    kind = GroupClassifier if assembly.plan.request.form in GROUPED else Classifier
    return kind(assembly, audit=audit, on_alarm=on_alarm)
