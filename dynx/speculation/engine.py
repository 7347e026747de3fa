"""The decode loop: draft, verify, keep, repeat.

One sequence, one target session whose cache holds every token but the last. A round asks the policy for a drafter, drafts,
verifies the draft tokens in one pass of the target, appends what the acceptance rule accepts and rolls the cache back to it.
The loop is independent of model families, kernels and tokenizers, and prints nothing:

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

import torch
from torch import Tensor

from dynx.errors import InvalidInput
from dynx.runtime.inputs import InputError
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads
from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.detokenizer import StopScanner, StreamDecoder, special
from dynx.speculation.drafters.base import DrafterCandidates
from dynx.speculation.drafters.draft_sampler import DraftSampler
from dynx.speculation.drafters.early_exit import EarlyExitDrafter
from dynx.speculation.drafters.model import open_model_drafter
from dynx.speculation.drafters.ngram_index import NgramIndex
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.kept_cache import KeptCache
from dynx.speculation.policy import Dynamic, Plain, Policy, Round
from dynx.speculation.round_costs import Costs
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.types import DrafterTally, DraftSource, FinishReason, Receipt, RedecodeStats, Request, Token
from dynx.speculation.verifier import Verifier, noise_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from dynx.runtime.backends.interface import Backend, Session
    from dynx.speculation.drafters.base import Draft, Drafter
    from dynx.speculation.drafters.late import LateDrafter
    from dynx.speculation.exactness import RoundingBound

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


def starting_regret_budget(promised_speedup: float) -> float:
    """Return the regret budget, in plain passes, at the start of a text whose profile promises a speed-up.

    Four for each plain pass that it promises to save: a drafter worth three times plain loses a round or two now and then,
    and must stay in use; one that promises nothing gets half a pass, in case its profile is wrong.
    """
    return min(max(4 * (promised_speedup - 1), 0.5), 8.0)


@dataclass(frozen=True)
class Drafters:
    """The drafters of a target: a draft model, an early exit after some layers, prompt lookup (with a library text)."""

    model: Backend | None = None
    exit_layers: int | None = None
    lookup: bool = True
    library: Sequence[int] = ()
    late: LateDrafter | None = None  # a model for long work; there is none until it is due

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
        self.clock = clock
        self.entropy = entropy  # seeds of sampling without a seed
        self.exact = exact  # how rounding is dealt with in greedy decoding; None: not at all
        self._earlier: Dynamic | None = None  # the policy of the text before
        self.batch_invariant = batch_invariant  # whether the target's passes give the same bits, however wide they are
        self.threads = threads  # of PyTorch, where it computes the target; None: as many as it has

    @cached_property
    def library(self) -> NgramIndex:
        """The text that lookup drafts from besides those at hand, indexed once for all of them."""
        index = NgramIndex()
        index.extend(self.drafters.library)
        return index

    def computing(self) -> AbstractContextManager[None]:
        """Give PyTorch the threads that it computes with here, inside a `with`: one where another runtime computes the target."""
        return torch_threads(BESIDE_ANOTHER_RUNTIME if self.target.own_threads else self.threads)

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
            policy = self._dynamic(request) if drafters else Plain()
        if self.exact is not None or not self.target.can_rollback.value:
            kept = None
        return Run(self, request, policy, drafters, kept)

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

    def _dynamic(self, request: Request) -> Dynamic:
        greedy, known = request.sampling.greedy, self.acceptance_profile
        origins: tuple[DraftSource, ...] = ("draft", "self", "lookup")
        promised = (known.rate or 0.0) * known.costs.target(1)
        each = starting_regret_budget(promised) if known.from_profile else known.regret_budget
        policy = Dynamic(
            known.costs,
            {origin: known.model_for(origin, greedy=greedy) for origin in origins},
            verify_prefixes=greedy or request.sampling.seed is not None,
            rate=known.rate,
            regret_budget=max(each, known.first_regret_budget),
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

    def _draft_sampler(self, request: Request) -> DraftSampler:
        noise = noise_for(request, self.target.vocab)
        return DraftSampler(
            LogitsProcessors.for_request(request, self.target.vocab),
            noise,
            torch.Generator().manual_seed(self.entropy()),
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


class Run:
    """One continuation in progress: iterating yields its tokens, and its receipt is available at any time."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        policy: Policy,
        drafters: dict[DraftSource, Drafter],
        kept: KeptCache | None = None,
    ) -> None:
        self.request = request
        self._engine, self._policy, self._drafters = engine, policy, drafters
        self._clock = engine.clock
        self._reused = 0 if kept is None else kept.resume(request.prompt)
        self._session: Session = kept.session if kept is not None and self._reused else engine.target.open()
        self._tokens: list[int] = list(request.prompt)
        self._verifier = Verifier(request, engine.target.vocab, engine.entropy())
        before = request.prompt if request.continues else ()
        self._decoder = StreamDecoder(engine.tokenizer, before) if engine.tokenizer is not None else None
        self._scanner = StopScanner(request.stop)
        self.tallies: dict[DraftSource, DrafterTally] = {}
        self.rounds: list[Round] = []
        self.finish_reason: FinishReason = "interrupted"
        self._forwards = 0
        self._exact = engine.exact if request.sampling.greedy else None
        self._redecode_stats = RedecodeStats(self._exact.bound) if self._exact else None
        # Near-ties are looked for in the logits; where none can matter, picks are all that a round needs.
        self._picks = not self._verifier.needs_logits and not (self._exact and self._exact.bound)
        self._sure = len(request.prompt)  # positions whose keys and values are as plain decoding writes them
        self._plain_seconds = 0.0
        self._began = self._clock()
        self._prefilled = self._first = self._latest = self._began
        for drafter in drafters.values():
            drafter.reset()
            if isinstance(drafter, EarlyExitDrafter):
                drafter.session = self._session

    @property
    def tokens(self) -> list[int]:
        """The ids written so far."""
        return self._tokens[len(self.request.prompt) :]

    @property
    def kept(self) -> KeptCache:
        """The cache as it is now, for a run to come; this run must not go on then."""
        return KeptCache(self._session, self._tokens[: self._session.length])

    def __iter__(self) -> Iterator[Token]:
        """Yield the tokens as they are verified."""
        if self.request.max_new_tokens < 1:
            self.finish_reason = "length"
            return
        with self._engine.computing():
            self._session.set_padded_length(1)  # a text doesn't depend on those before it
            row = self._read(self._tokens[self._reused :], keep=1)
            self._session.set_padded_length(1)
            kept = self._verifier.keep([], row, self._tokens)
        self._prefilled = self._first = self._clock()
        yield from self._emit(kept, None)
        while self.finish_reason == "interrupted":
            room = self._room()
            if room < 0:
                self.finish_reason = "context"
                yield from self._flush()
                return
            with self._engine.computing():
                self._join_late()
                kept, origin = self._round(room)
            yield from self._emit(kept, origin)

    def _join_late(self) -> None:
        """Draft with the deferred model from the round in which it is due."""
        if (
            self._engine.drafters.late is not None
            and self._drafters
            and (model := self._engine.load_late()) is not None
        ):
            self._drafters = {"draft": self._engine.model_drafter(self.request, model), **self._drafters}

    def _room(self) -> int:
        """Return how many drafts could still be used; negative when not even a plain pass fits the context."""
        left = self.request.max_new_tokens - (len(self._tokens) - len(self.request.prompt)) - 1
        limit = self._engine.target.context
        return left if limit is None else min(left, limit - len(self._tokens))

    def _round(self, room: int) -> tuple[list[int], DraftSource | None]:
        """Draft, verify, roll back; returns the tokens to append (the last is the target's own) and the source of the others."""
        start, policy, tokens = self._clock(), self._policy, self._tokens
        context = len(tokens) - 1
        if (most := self._engine.target.max_pass_length(context)) is not None:
            room = min(room, most - 1)
        origin = (
            policy.choose(DrafterCandidates(self._drafters, tokens), context, room) if room and self._drafters else None
        )
        if origin is None:
            began = self._clock() if self._drafters else start
            rows = self._plainly(tokens[-1])
            kept = self._verifier.keep([], rows, tokens)
            verified = self._clock()
            kept = self._settled(kept, None, rows)
            done = Round(context, None, verify_seconds=verified - began, seconds=self._clock() - start)
        else:
            drafter = self._drafters[origin]
            tokens_behind = drafter.tokens_behind(len(tokens))
            drafter.sync(tokens)
            drafts: list[Draft] = []
            began = self._clock()
            while len(drafts) < room and policy.should_draft_more([d.signal for d in drafts]):
                draft = drafter.propose()
                if draft is None:
                    break
                drafts.append(draft)
            drafted = self._clock()
            submitted = drafts[: policy.verify_length([d.signal for d in drafts])]
            submitting = self._clock()
            rows = self._verify(origin, drafts, submitted)
            kept = self._verifier.keep(submitted, rows, tokens)
            verified = self._clock()
            kept = self._settled(kept, submitted, rows)
            self._session.rollback(context + len(kept))
            drafter.accept(len(kept) - 1)
            done = Round(
                context,
                origin,
                tokens_behind,
                [d.signal for d in drafts],
                len(submitted),
                len(kept) - 1,
                drafted - began,
                verified - submitting,
                self._clock() - start,
            )
            self._tally(done)
        self._forwards += 1
        policy.learn(done)
        self.rounds.append(done)
        # Priced round by round, at the speed that the machine had just then.
        self._plain_seconds += done.tokens * self._engine.acceptance_profile.costs.target(1, context)
        return kept, origin

    def _settled(self, kept: list[int], drafts: Sequence[Draft] | None, rows: Tensor | list[int]) -> list[int]:
        """Return `kept` up to the first near-tie, with that token re-decoded by plain passes.

        `drafts` is None after a plain pass.
        """
        exact, recheck = self._exact, self._redecode_stats
        if exact is None or recheck is None or isinstance(rows, list):
            return kept
        tokens = self._tokens
        if drafts is None and self._sure == len(tokens) - 1:
            self._sure += 1  # a plain pass over what plain passes wrote
            return kept
        verified = (drafts or [])[: len(kept) - 1]
        tie = self._verifier.first_tie(exact, verified, rows[: len(kept)], tokens)
        if tie is None:
            return kept
        began = self._clock()
        text = [*tokens, *kept[:tie]]
        self._session.rollback(self._sure)
        for token in text[self._sure :]:
            row = self._plainly(token)
        self._redecode_stats = RedecodeStats(
            recheck.bound,
            recheck.near_ties + 1,
            recheck.redecoded + len(text) - self._sure,
            recheck.seconds + self._clock() - began,
        )
        self._sure = len(text)
        return [*kept[:tie], *self._verifier.keep([], row, text)]

    def _read(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor | list[int]:
        """Return the target's logits after `tokens`, or only their picks where a round needs no more."""
        return self._session.pick(tokens, keep=keep) if self._picks else self._session.forward(tokens, keep=keep)

    def _plainly(self, token: int) -> Tensor | list[int]:
        """Read one token, with logits bit-identical to plain decoding's where the run is exact."""
        if self._exact is not None and self._exact.bound:
            self._session.set_padded_length(1)
        return self._read([token])

    def _verify(self, origin: DraftSource, drafts: Sequence[Draft], submitted: Sequence[Draft]) -> Tensor | list[int]:
        """Return the target's logits (len(submitted) + 1, V), or their picks."""
        if origin == "self" and drafts:
            drafter = self._drafters[origin]
            if isinstance(drafter, EarlyExitDrafter) and len(submitted) == len(drafts):
                self._session.forward_early([drafts[-1].token], drafter.layers, logits=False)
            return self._session.complete(len(submitted) + 1)
        return self._read([self._tokens[-1], *[d.token for d in submitted]])

    def _emit(self, kept: Sequence[int], origin: DraftSource | None) -> Iterator[Token]:
        """Append tokens and pass on their text, up to whatever ends the answer."""
        request = self.request
        for i, token in enumerate(kept):
            self._tokens.append(token)
            source: DraftSource = "target" if origin is None or i == len(kept) - 1 else origin
            ended = token in request.eos
            text = "" if ended else self._text(token)
            if ended:
                self.finish_reason = "eos"
            elif self._scanner.stopped:
                self.finish_reason = "stop"
            elif len(self._tokens) - len(request.prompt) >= request.max_new_tokens:
                self.finish_reason = "length"
            self._latest = self._clock()
            yield Token(token, text, source)
            if self.finish_reason != "interrupted":
                yield from self._flush()
                return

    def _text(self, token: int) -> str:
        """Return the text that can be shown with `token`."""
        if self._decoder is None:
            return ""
        text = self._scanner.push(piece := self._decoder.push(token))
        if not piece and self._scanner.looking and (name := special(self._engine.tokenizer, token)):
            text += self._scanner.push(name, hidden=True)
            if self._scanner.stopped:
                text += self._decoder.flush()  # an unfinished character before it
        return text

    def _flush(self) -> Iterator[Token]:
        """Text held back for a character or a stop string that didn't come, as a token-less last piece."""
        if self._decoder is None or self.finish_reason == "stop":
            return
        text = self._scanner.push(self._decoder.flush()) + self._scanner.flush()
        if text:
            yield Token(-1, text, "target")

    def _tally(self, done: Round) -> None:
        if done.origin is None:
            return
        tally = self.tallies.setdefault(done.origin, DrafterTally())
        tally.add(drafted=len(done.signals), submitted=done.submitted, accepted=done.kept, seconds=done.draft_seconds)

    def receipt(self) -> Receipt:
        """Return what the run cost so far, without the time that the caller spent between tokens."""
        known, count = self._engine.acceptance_profile, len(self.tokens)
        spent = self._prefilled - self._began + sum(r.seconds for r in self.rounds)
        return Receipt(
            prompt_tokens=len(self.request.prompt),
            tokens=count,
            finish_reason=self.finish_reason,
            seconds=spent,
            prefill_seconds=self._prefilled - self._began,
            first_token_seconds=self._first - self._began if count else None,
            target_forwards=self._forwards,
            drafters={o: replace(t) for o, t in self.tallies.items()},
            idle="draft" in self._drafters and "draft" not in self.tallies,
            guarantee=self._verifier.guarantee(
                self._engine.target,
                # A cache that wasn't written by one pass over the prompt may hold other bits.
                exact=not self._reused and (self._engine.batch_invariant or self._exact is not None),
            ),
            plain_seconds=self._plain_seconds or None,
            plain_measured=("profile" if known.from_profile else "this run") if self._plain_seconds else None,
            exact=self._redecode_stats,
            reused_tokens=self._reused,
        )
