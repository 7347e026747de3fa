"""A certificate from the inputs of a run, for any form of inputs: a random sample of them decides how early the rest may exit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.early_exit import sample_certificate
from dynx.early_exit.assembly import Reference, is_reference
from dynx.early_exit.audit import certify_sample, draw_sample
from dynx.early_exit.features import collect
from dynx.early_exit.group_classifier import GroupClassifier
from dynx.early_exit.groups.certify import GroupEvidence, simulate
from dynx.early_exit.groups.rows import groups_of, pairs_of
from dynx.early_exit.groups.values import rule_of, values_of
from dynx.early_exit.profile_data import MIN_EXPECTED_SPEEDUP
from dynx.early_exit.sample_certificate import MIN_INPUTS_PER_DRAWN, MIN_SAMPLE_MULTIPLE, SEED, sample_size
from dynx.early_exit.types import Guarantee
from dynx.runtime.binomial import percent, smallest_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.group_classifier import AnyClassifier
    from dynx.early_exit.groups.profile_data import FittedGroupExits


def certify(classifier: AnyClassifier, items: Sequence[Any]) -> str:
    """Certify and set the classifier's exits for exactly these `items`, all inputs of the run; return the result in words.

    Inputs of several pairs need a profile. InvalidInput: a regression without a tolerance.
    """
    if not isinstance(classifier, GroupClassifier):
        return sample_certificate.certify(classifier, items)
    known, request = classifier.assembly.group_profile, classifier.assembly.plan.request
    if known is None:
        return f"full depth: {classifier.assembly.why_full_depth}"
    eps, delta = request.max_disagreement, request.delta
    drawn = sample_size(len(items), eps, delta)
    if not drawn:
        classifier.set_exits(None, classifier.full_guarantee)
        need = MIN_INPUTS_PER_DRAWN * MIN_SAMPLE_MULTIPLE * smallest_sample(eps, delta)
        return (
            f"full depth: {len(items):,} inputs are too few; from {need:,} on, a sample of them can show {percent(eps)}"
        )
    sample = [items[i] for i in draw_sample(len(items), drawn, SEED)]
    fitted, rule = known.fitted, rule_of(request)
    if rule is None:
        raise ValueError("all rows are part of the result")
    seen, present = _run(classifier.assembly, sample, fitted)
    costs = fitted.costs_at(classifier.assembly.batch)
    outcomes = [simulate(rule, thresholds, fitted.errors, seen, costs) for thresholds in fitted.rules.thresholds]

    def differs(outcome: Any) -> list[bool]:
        out = np.zeros(drawn, dtype=bool)
        out[present] = outcome.differs
        return list(out.tolist())

    found = certify_sample(map(differs, outcomes), len(items), drawn, eps, delta)
    pays = found.rule is not None and outcomes[found.rule].speedup >= MIN_EXPECTED_SPEEDUP
    if found.rule is None or not pays:
        classifier.set_exits(None, classifier.full_guarantee)
        return found.words if pays else f"full depth: exits within {percent(eps)} would cost more than they save here"
    guarantee = Guarantee(eps, delta, drawn, found.disagreements, "job")
    classifier.set_exits(fitted.exits(fitted.rules.thresholds[found.rule]), guarantee)
    return found.words


def _run(assembly: LoadedClassifier, items: Sequence[Any], fitted: FittedGroupExits) -> tuple[GroupEvidence, list[int]]:
    """Run inputs at every exit and by the full model; return also the positions of those that could be read."""
    request = assembly.plan.request
    values = values_of(assembly.exit_model.model.config, request)
    groups = groups_of(items, request, assembly.preprocessor)
    present = [i for i, group in enumerate(groups) if group.error is None]
    rows = [row for i in present for row in groups[i].rows]
    reference = None
    if not is_reference(assembly):
        pairs = [pair for i in present for pair in pairs_of(items[i], request)]
        reference = torch.from_numpy(Reference(assembly).logits(pairs))
    seen = collect(assembly, rows, fitted.depths, reference)
    estimates = np.stack([out[:, 0].double().numpy() for out in fitted.heads.run(seen.pooled)])
    sizes = np.asarray([len(groups[i].rows) for i in present], dtype=np.int64)
    return GroupEvidence(estimates, values(seen.logits.numpy()), values(seen.reference_logits.numpy()), sizes), present
