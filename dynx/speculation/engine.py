"""Starts continuations: a target model with its drafters, and what is known of their costs and acceptance.

A text has a session of the target whose cache holds every token but the last. How it is written is in `run` and `rounds`, for one
text or for many (`batching`). None of it depends on model families, kernels or tokenizers, or prints anything:

    engine = Engine(target, Drafters(model=small))
    run = engine.start(Request(prompt_ids))
    for token in run:
        ...
    run.receipt()
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput
from dynx.runtime.inputs import InputError
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads
from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.drafters.batch import SharedModelDrafter
from dynx.speculation.drafters.draft_sampler import DraftSampler
from dynx.speculation.drafters.early_exit import EarlyExitDrafter
from dynx.speculation.drafters.model import open_model_drafter
from dynx.speculation.drafters.next_tokens import CANDIDATES, NextTokens
from dynx.speculation.drafters.ngram_index import NgramIndex
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.policy import Dynamic, Plain
from dynx.speculation.round_costs import Costs
from dynx.speculation.rounds import Rounds
from dynx.speculation.run import Run
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.tree_choice import WRITTEN, Beliefs, Trees
from dynx.speculation.verifier import noise_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.drafters.base import Drafter
    from dynx.speculation.drafters.batch import BatchDrafter
    from dynx.speculation.drafters.followers import Followers
    from dynx.speculation.drafters.late import LateDrafter
    from dynx.speculation.exactness import RoundingBound
    from dynx.speculation.kept_cache import KeptCache
    from dynx.speculation.policy import Policy
    from dynx.speculation.shared_costs import SharedCosts
    from dynx.speculation.types import DraftSource, Request

ACCEPTANCE_PRIORS: Mapping[DraftSource, tuple[tuple[float, float, float], float]] = {
    # Weights of (1, signal, ln position), and acceptance expected before the first draft. A model's odds are taken at their
    # word; the shallow exit's at less. Lookup's are those of a 135 M chat model's answers to 48 questions of Spec-Bench
    # (tests/speculation/data), fitted over rounds: a match of one token is right one time in four, a match of three every other.
    "draft": ((0.0, 1.0, 0.0), 0.6),
    "self": ((-0.5, 0.8, 0.0), 0.4),
    "lookup": ((-1.9, 0.95, 0.3), 0.5),
}


UNPROFILED_REGRET_BUDGET_PASSES = 1.5
"""Regret budget at the start of a text without a profile, for requested drafters, in plain passes."""


PAID_CHANGES = 8
"""Changes of the number of tokens of a pass that a regret budget pays for at the start of a text."""


def starting_regret_budget(promised_speedup: float, change: float = 0.0) -> float:
    """Return the regret budget, in plain passes, at the start of a text whose profile promises a speed-up.

    Four for each plain pass that it promises to save: a drafter worth three times plain loses a round or two now and then,
    and must stay in use; one that promises nothing gets half a pass, in case its profile is wrong. Where a `change` of the
    number of tokens takes time, in plain passes, a few rounds pay for one before they gain.
    """
    promised = 4 * (promised_speedup - 1)
    return min(max(promised, 0.5) + min(max(2 * promised, 0.0), 1.0) * PAID_CHANGES * change, 8.0)


@dataclass(frozen=True)
class Drafters:
    """The drafters of a target: a draft model, an early exit after some layers, prompt lookup (with a library text)."""

    model: Backend | None = None
    exit_layers: int | None = None
    lookup: bool = True
    library: Sequence[int] = ()
    late: LateDrafter | None = None  # a model for long work; there is none until it is due
    trees: bool = False  # whether passes may verify trees of candidates

    @property
    def present(self) -> bool:
        """Whether anything drafts, now or once it is loaded."""
        return self.model is not None or self.late is not None or bool(self.exit_layers) or self.lookup


@dataclass
class AcceptanceProfile:
    """Costs and acceptance of a target and its drafters, from a profile or from the runs so far."""

    costs: Costs = field(default_factory=Costs)
    acceptance_models: dict[tuple[DraftSource, bool], AcceptanceModel] = field(
        default_factory=dict
    )  # by drafter and greedy
    rate: float | None = None  # tokens per second that the profile expects
    from_profile: bool = False
    regret_budget: float = UNPROFILED_REGRET_BUDGET_PASSES  # plain passes, at the start of a text without a profile
    first_regret_budget: float = 0.0  # the same, at the start of the first text only
    next_tokens: Mapping[int, tuple[int, ...]] = field(
        default_factory=dict
    )  # the target's candidates by the token before
    followers: Followers | None = None  # what followed pairs of tokens in texts of calibration

    @property
    def first_candidates(self) -> Mapping[int, tuple[int, ...]]:
        """Candidates by the token before them, before the target has shown any: what followed most often comes first."""
        if self.followers is None:
            return self.next_tokens
        out = dict(self.next_tokens)
        for token, often in self.followers.tokens.items():
            out[token] = tuple(dict.fromkeys([*often, *out.get(token, ())]))[:CANDIDATES]
        return out

    def model_for(self, origin: DraftSource, *, greedy: bool) -> AcceptanceModel:
        """Return a source's acceptance model in a mode; sampling starts from what greedy decoding learned."""
        if (origin, greedy) not in self.acceptance_models:
            other = self.acceptance_models.get((origin, not greedy))
            weights, typical = ACCEPTANCE_PRIORS[origin]
            self.acceptance_models[origin, greedy] = (
                AcceptanceModel.from_json(other.to_json()) if other else AcceptanceModel(weights, typical=typical)
            )
        return self.acceptance_models[origin, greedy]


class Engine:
    """A target with its drafters and their acceptance profile; starts any number of runs, one at a time."""

    def __init__(
        self,
        target: Backend,
        drafters: Drafters | None = None,
        *,
        tokenizer: Any = None,
        acceptance_profile: AcceptanceProfile | None = None,
        clock: Callable[[], float] = time.perf_counter,
        entropy: Callable[[], int] = lambda: secrets.randbits(63),
        exact: RoundingBound | None = None,
        batch_invariant: bool = False,
        threads: int | None = None,
    ) -> None:
        self.target = target
        self.drafters = drafters or Drafters()
        self.tokenizer = tokenizer
        self.acceptance_profile = acceptance_profile or AcceptanceProfile()
        costs = self.acceptance_profile.costs
        costs.replays = target.replays
        costs.first_wide = max(costs.first_wide, target.first_wide or 0.0)
        costs.prepared = lambda: target.prepared_tokens
        self.clock = clock
        self.entropy = entropy  # seeds of sampling without a seed
        self.exact = exact  # how rounding is dealt with in greedy decoding; None: not at all
        self._earlier: Dynamic | None = None  # the policy of the text before
        self.batch_invariant = batch_invariant  # whether the target's passes give the same bits, however wide they are
        self.next_tokens, self._tree_beliefs = NextTokens(self.acceptance_profile.first_candidates), Beliefs()
        if (followers := self.acceptance_profile.followers) is not None:
            self._tree_beliefs.begin(WRITTEN, followers.rates)
        self.threads = threads  # of PyTorch, where it computes the target; None: as many as it has

    def know(self, candidates: Mapping[int, Sequence[int]]) -> None:
        """Begin trees with these candidates by the token before them, in the place of those of the profile."""
        self.acceptance_profile.next_tokens = {token: tuple(each) for token, each in candidates.items()}
        self.next_tokens = NextTokens(self.acceptance_profile.first_candidates)

    @cached_property
    def library(self) -> NgramIndex:
        """The text that lookup drafts from besides those at hand, indexed once for all of them."""
        index = NgramIndex()
        index.extend(self.drafters.library)
        return index

    def computing(self) -> AbstractContextManager[None]:
        """Give PyTorch the threads that it computes with here, inside a `with`: one where another runtime computes the target."""
        return torch_threads(BESIDE_ANOTHER_RUNTIME if self.target.own_threads else self.threads)

    def rounds(self) -> Rounds:
        """Return the loop of a text by itself."""
        return Rounds(self.clock)

    def trees(self, request: Request, drafters: Mapping[DraftSource, Drafter]) -> Trees | None:
        """Return what makes trees of a text's drafts; None where a pass can't verify one as plain decoding would."""
        target = self.target
        if not self.drafters.trees or not drafters or not target.can_tree.value:
            return None
        exact_rows = target.precision == "float32" and not target.trunk_only
        strict = request.any_prefix and (target.exact_trunk or not exact_rows)
        if target.trunk_only and not strict:
            return None
        bitwise = self.batch_invariant or self.exact is not None
        if request.any_prefix and bitwise and (not target.exact_trunk or (self.exact is not None and self.exact.bound)):
            return None
        lookup = drafters.get("lookup")
        found = lookup.followers if isinstance(lookup, LookupDrafter) else lambda _: ()
        written = {} if (followers := self.acceptance_profile.followers) is None else {"written": followers.after}
        return Trees(self.next_tokens, self._tree_beliefs, found, target.max_pass_length, strict=strict, **written)

    def start(self, request: Request, policy: Policy | None = None, *, kept: KeptCache | None = None) -> Run:
        """Begin a continuation. Without a `policy`: the dynamic one, or plain where the target can't roll back.

        `kept` is the cache of an earlier run of this engine, which is used up: what it shares with the prompt isn't read again.
        Where the target can't roll back, or the text must be exact, the whole prompt is read.

        Raises InputError if the prompt doesn't fit the model's context.
        """
        self.check(request)
        with self.computing():
            drafters = self._open_drafters(request)
        if policy is None:
            policy = self.policy(request) if drafters else Plain()
        if self.exact is not None or not self.target.can_rollback.value:
            kept = None
        reused = 0 if kept is None else kept.resume(request.prompt)
        session = kept.session if kept is not None and reused else self.target.open()
        return Run(self, request, policy, drafters, session, reused)

    def check(self, request: Request) -> None:
        """Raise InputError for a prompt that can't be continued: an empty one, one that doesn't fit, foreign tokens.

        InvalidInput: the request can't be met whatever the prompt.
        """
        limit = self.target.context
        if not request.prompt:
            raise InputError("the prompt has no tokens")
        if request.stop and self.tokenizer is None:
            raise InvalidInput("stop strings need a tokenizer to be recognised")
        if max(request.prompt) >= self.target.vocab:
            raise InputError(f"the prompt has token {max(request.prompt)}, the model {self.target.vocab} tokens")
        if limit is not None and len(request.prompt) > limit:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens and the model's context is {limit}",
                hint="shorten the prompt, or pick a model with a longer context",
            )

    def policy(self, request: Request, shared: SharedCosts | None = None) -> Dynamic:
        """Return the dynamic policy for a text, with what those before it taught; `shared` prices passes of several texts.

        Each of several texts has its own belief in its drafts, from what all of them taught so far.
        """
        greedy, known = request.sampling.greedy, self.acceptance_profile
        origins: tuple[DraftSource, ...] = ("draft", "self", "lookup")
        promised = (known.rate or 0.0) * known.costs.target(1)
        known.costs.width = 0  # the prompt's
        each = (
            starting_regret_budget(promised, known.costs.change_passes) if known.from_profile else known.regret_budget
        )
        models = {origin: known.model_for(origin, greedy=greedy) for origin in origins}
        policy = Dynamic(
            shared or known.costs,
            models if shared is None else {origin: model.branch() for origin, model in models.items()},
            verify_prefixes=request.any_prefix,
            rate=known.rate,
            regret_budget=max(each, known.first_regret_budget),
            pace=None if shared is None else shared.pace,
        )
        if self._earlier is not None:
            policy.resume(self._earlier, at_least=each)
        self._earlier = policy
        return policy

    def _open_drafters(self, request: Request) -> dict[DraftSource, Drafter]:
        if not self.target.can_rollback.value:
            return {}
        self.load_late()
        sampler = self._draft_sampler(request)
        out: dict[DraftSource, Drafter] = {}
        model, layers = self.drafters.model, self.drafters.exit_layers
        if model is not None and model.can_rollback.value:
            out["draft"] = open_model_drafter(model, sampler, self.target.vocab)
        if layers and layers < self.target.layers and self.target.can_exit.value:
            out["self"] = EarlyExitDrafter(layers, sampler)
        if self.drafters.lookup:
            out["lookup"] = LookupDrafter(self.library, request.sampling.own.new_ngrams)
        return out

    def shared_drafters(self, request: Request, model: BatchDrafter | None) -> dict[DraftSource, Drafter]:
        """Open the drafters of a text in a batch, whose draft model, if there is one, is `model`."""
        out: dict[DraftSource, Drafter] = {}
        if model is not None:
            out["draft"] = SharedModelDrafter(model, self._draft_sampler(request))
        if self.drafters.lookup:
            out["lookup"] = LookupDrafter(self.library, request.sampling.own.new_ngrams)
        return out

    def _draft_sampler(self, request: Request) -> DraftSampler:
        noise = noise_for(request, self.target.vocab)
        return DraftSampler(
            LogitsProcessors.for_request(request, self.target.vocab),
            noise,
            self.entropy(),
        )

    def model_drafter(self, request: Request, model: Backend) -> Drafter:
        """Open a drafter for one text."""
        return open_model_drafter(model, self._draft_sampler(request), self.target.vocab)

    def load_late(self) -> Backend | None:
        """Load the deferred draft model if it is due, and add it to the drafters; None otherwise."""
        late = self.drafters.late
        if late is None or not late.due:
            return None
        model = late.load()
        self.drafters = replace(self.drafters, model=model, late=None)
        return model if model.can_rollback.value else None
