"""One text in progress: what it drafts, what is accepted of it, and the tokens that come out.

The steps of a round that concern one text are here: to choose a drafter, to draft, to accept by the rows that the target gave,
to roll back and to learn. `rounds` calls them, for one text or for many.

Times are seconds. Letters: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from dynx.runtime.backends.interface import Part
from dynx.speculation.detokenizer import StopScanner, StreamDecoder, special
from dynx.speculation.drafters.base import DrafterCandidates, SessionDrafter
from dynx.speculation.drafters.draft import Draft
from dynx.speculation.drafters.early_exit import EarlyExitDrafter
from dynx.speculation.kept_cache import KeptCache
from dynx.speculation.types import DrafterTally, FinishReason, Receipt, RedecodeStats, Token
from dynx.speculation.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from dynx.runtime.backends.batch_rows import Rows
    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.drafters.base import Drafter
    from dynx.speculation.exactness import RoundingBound
    from dynx.speculation.policy import Policy, Round
    from dynx.speculation.tree import Branches
    from dynx.speculation.tree_choice import Trees
    from dynx.speculation.types import DraftSource, Request


@dataclass
class Proposal:
    """The tokens of a text for the target to read in a round, and how long they took to draft."""

    last: int  # the text's last token, which the target hasn't read yet
    room: int  # drafts that could be used
    context: int  # tokens that the target has read
    origin: DraftSource | None = None
    tokens_behind: int = 1
    drafts: list[Draft] = field(default_factory=list)
    submitted: Sequence[Draft] = ()
    branches: Branches | None = None  # where what is submitted is a tree
    path: Sequence[int] = ()  # rows of the tree that gave tokens
    carried: bool = False  # whether the drafts are tokens that rows beside the trunk of the pass before gave
    draft_seconds: float = 0.0
    replay_seconds: float = 0.0  # to read accepted tokens again after a rejection

    @property
    def tokens(self) -> list[int]:
        """Tokens for the target to read."""
        return [self.last, *[d.token for d in self.submitted]]

    @property
    def chain_result(self) -> tuple[int, int] | None:
        """Drafts submitted and kept that the drafter made one after the other, where a tree was verified."""
        if self.branches is None:
            return None
        return self.branches.chain, sum(0 < row <= self.branches.chain for row in self.path)

    @property
    def signals(self) -> list[float]:
        """The drafter's confidence in each draft."""
        return [] if self.carried else [d.signal for d in self.drafts]


class Loop(Protocol):
    """Runs rounds (see `rounds`)."""

    def run(self, runs: Sequence[Run]) -> list[tuple[list[int], DraftSource | None]]:
        """Run a round; return each text's tokens to append and the source of all but the last."""


class Starter(Protocol):
    """What a text needs of the engine that starts it."""

    target: Backend
    tokenizer: Any
    clock: Callable[[], float]
    entropy: Callable[[], int]
    exact: RoundingBound | None
    batch_invariant: bool
    drafters: Any
    acceptance_profile: Any

    def computing(self) -> AbstractContextManager[None]:
        """Give PyTorch its threads inside a `with`."""

    def rounds(self) -> Loop:
        """Return the loop of a text by itself."""

    def trees(self, request: Request, drafters: dict[DraftSource, Drafter]) -> Trees | None:
        """Return what makes trees of a text's drafts; None where it has chains alone."""

    def load_late(self) -> Backend | None:
        """Load the deferred draft model if it is due."""

    def model_drafter(self, request: Request, model: Backend) -> Drafter:
        """Open a drafter for one text."""


class Run:
    """One continuation in progress: iterating yields its tokens, and its receipt is available at any time."""

    def __init__(
        self,
        engine: Starter,
        request: Request,
        policy: Policy,
        drafters: dict[DraftSource, Drafter],
        session: Any = None,
        reused: int = 0,
    ) -> None:
        self.request = request
        self.policy, self.drafters = policy, drafters
        self._engine = engine
        self._clock = engine.clock
        self._reused = reused  # tokens of the prompt that the session holds already
        self.session = session  # of the target; None while the text waits for a place in a batch
        self._tokens: list[int] = list(request.prompt)
        self._verifier = Verifier(request, engine.target.vocab, engine.entropy())
        before = request.prompt if request.continues else ()
        self._decoder = StreamDecoder(engine.tokenizer, before) if engine.tokenizer is not None else None
        self._scanner = StopScanner(request.stop)
        self.trees = engine.trees(request, drafters)
        self.tallies: dict[DraftSource, DrafterTally] = {}
        self.rounds: list[Round] = []
        self.finish_reason: FinishReason = "interrupted"
        self._forwards = self._company = 0
        self._carried: list[int] = []  # tokens of rows beside the trunk of the last tree
        self._chained: int | None = None  # accepted drafts of the last round's chain, where it was part of a tree
        self._exact = engine.exact if request.sampling.greedy else None
        self._redecode_stats = RedecodeStats(self._exact.bound) if self._exact else None
        # Near-ties are looked for in the logits; where none can matter, picks are all that a round needs.
        self.picks = not self._verifier.needs_logits and not (self._exact and self._exact.bound)
        self._sure = len(request.prompt)  # positions whose keys and values are as plain decoding writes them
        self._plain_seconds = 0.0
        self._began = self._clock()
        self._prefilled = self._first = self._latest = self._began
        for drafter in drafters.values():
            drafter.reset()
            if isinstance(drafter, SessionDrafter):
                drafter.session = session

    @property
    def tokens(self) -> list[int]:
        """The ids written so far."""
        return self._tokens[len(self.request.prompt) :]

    @property
    def text(self) -> list[int]:
        """Prompt and answer so far."""
        return self._tokens

    @property
    def kept(self) -> KeptCache:
        """The cache as it is now, for a run to come; this run must not go on then."""
        return KeptCache(self.session, self._tokens[: self.session.length])

    def __iter__(self) -> Iterator[Token]:
        """Yield the tokens as they are verified."""
        if self.request.max_new_tokens < 1:
            self.finish_reason = "length"
            return
        rounds = self._engine.rounds()
        with self._engine.computing():
            self.session.set_padded_length(1)  # a text doesn't depend on those before it
            row = self._read(self._tokens[self._reused :], keep=1)
            self.session.set_padded_length(1)
            kept = self._verifier.keep([], row, self._tokens)
        self._prefilled = self._first = self._clock()
        yield from self._emit(kept, None)
        while self.finish_reason == "interrupted":
            if self.room < 0:
                self.finish_reason = "context"
                yield from self._flush()
                return
            with self._engine.computing():
                self._join_late()
                ((kept, origin),) = rounds.run([self])
            yield from self._emit(kept, origin)

    def _join_late(self) -> None:
        """Draft with the deferred model from the round in which it is due."""
        if self._engine.drafters.late is not None and self.drafters and (model := self._engine.load_late()) is not None:
            self.drafters = {"draft": self._engine.model_drafter(self.request, model), **self.drafters}

    @property
    def room(self) -> int:
        """Drafts that could still be used; negative when not even a plain pass fits the context."""
        left = self.request.max_new_tokens - (len(self._tokens) - len(self.request.prompt)) - 1
        limit = self._engine.target.context
        return left if limit is None else min(left, limit - len(self._tokens))

    def propose(self, limit: int | None = None) -> Proposal:
        """Begin a round whose pass takes `limit` tokens of a text at most: ask the policy for a drafter."""
        tokens, policy = self._tokens, self.policy
        room, context = self.room, len(tokens) - 1
        for most in (limit, self._engine.target.max_pass_length(context)):
            room = room if most is None else min(room, most - 1)
        proposal = Proposal(tokens[-1], room, context)
        if room > 0 and self._carried:
            proposal.carried, proposal.origin = True, "table"
            proposal.drafts = [Draft(token, 0.0) for token in self._carried[:room]]
            return proposal
        if room > 0 and self.drafters:
            proposal.origin = policy.choose(DrafterCandidates(self.drafters, tokens), context, room)
        if proposal.origin is not None:
            drafter = self.drafters[proposal.origin]
            proposal.tokens_behind = drafter.tokens_behind(len(tokens))
            drafter.sync(tokens)
        return proposal

    def wants_more(self, proposal: Proposal) -> bool:
        """Whether to make one more draft."""
        return len(proposal.drafts) < proposal.room and self.policy.should_draft_more(proposal.signals)

    def draft(self, proposal: Proposal) -> None:
        """Draft as long as the policy wants."""
        if proposal.origin is None or proposal.carried:
            return
        drafter, began = self.drafters[proposal.origin], self._clock()
        while self.wants_more(proposal) and (draft := drafter.propose()) is not None:
            proposal.drafts.append(draft)
        proposal.draft_seconds = self._clock() - began

    def submit(self, proposal: Proposal) -> None:
        """Decide how many of the drafts to verify."""
        if proposal.carried:
            proposal.submitted = proposal.drafts
        elif proposal.origin is not None:
            proposal.submitted = proposal.drafts[: self.policy.verify_length(proposal.signals)]

    def branch(self, proposal: Proposal) -> None:
        """Add other candidates to the drafts that were submitted, or put them in the place of the last ones, where that pays."""
        trees = self.trees
        if trees is None or proposal.room < 1 or proposal.origin == "self":
            return
        if any(d.probabilities is not None for d in proposal.drafts):
            return  # drawn, so that they must be verified by the rule for drawn ones
        found = trees.grow(
            self.policy,
            self._tokens,
            proposal.submitted,
            proposal.context,
            proposal.room,
            carried=proposal.carried,
        )
        if found is not None:
            proposal.submitted, proposal.branches = found
            proposal.origin = proposal.origin or "table"

    def verify(self, proposal: Proposal) -> Rows:
        """Return the target's rows after `Proposal.tokens` in a pass of the text's own: logits (T, V), or their picks."""
        if proposal.branches is not None:
            rows: Rows = self.session.forward_tree(proposal.tokens, proposal.branches.parents, picks=self.picks)
            return rows
        if proposal.origin is None:
            return self._plainly(proposal.last)
        if proposal.origin == "self" and proposal.drafts:
            drafter, drafts, submitted = self.drafters["self"], proposal.drafts, proposal.submitted
            if isinstance(drafter, EarlyExitDrafter) and len(submitted) == len(drafts):
                self.session.forward_early([drafts[-1].token], drafter.layers, logits=False)
            logits: Tensor = self.session.complete(len(submitted) + 1)
            return logits
        return self._read(proposal.tokens)

    def part(self, proposal: Proposal) -> Part:
        """Return the same as a part of a pass with others."""
        parents = () if proposal.branches is None else proposal.branches.parents
        return Part(self.session, proposal.tokens, None, self.picks, parents)

    def accept(self, proposal: Proposal, rows: Rows) -> list[int]:
        """Return the tokens to append by the target's `rows` after `Proposal.tokens`; the last is the target's own."""
        if proposal.branches is None:
            return self._verifier.keep(proposal.submitted, rows, self._tokens)
        found = self._verifier.walk(proposal.submitted, proposal.branches.parents, rows, self._tokens)
        proposal.path = found.rows
        return found.tokens

    def settle(self, proposal: Proposal, kept: list[int], rows: Rows) -> list[int]:
        """Return `kept` as it stands after near-ties are re-decoded, with the cache rolled back to it."""
        drafts, trees, branches = proposal.submitted, self.trees, proposal.branches
        self._carried = []
        if trees is not None:
            trees.see([self._tokens[-1], *kept[:-1]], rows, proposal.path)
        if trees is not None and branches is not None:
            trees.learn(branches, proposal.path)
            if trees.strict:
                sure = sum(row <= branches.trunk for row in proposal.path)
                kept, self._carried, proposal.path = kept[:sure], kept[sure:], proposal.path[:sure]
            trees.count(branches, len(kept))
            path = proposal.path
            self.session.keep(proposal.context, path)
            drafts = [drafts[row - 1] for row in path[1:]]
            rows = [rows[row] for row in path] if isinstance(rows, list) else rows[list(path)]
        self._chained = None if proposal.chain_result is None else proposal.chain_result[1]
        kept = self._settled(kept, drafts if proposal.origin is not None else None, rows)
        if proposal.origin is not None:
            began = self._clock()
            self.session.rollback(proposal.context + len(kept))
            proposal.replay_seconds = self._clock() - began if self._engine.target.replays else 0.0
            if proposal.origin in self.drafters:
                self.drafters[proposal.origin].accept(len(kept) - 1)
        return kept

    def learn(self, done: Round, sequences: int = 1) -> None:
        """Record a finished round, which `sequences` texts shared."""
        self._tally(done)
        self._forwards += 1
        self._company += sequences
        self.policy.learn(done)
        self.rounds.append(done)
        # Priced round by round: what plain decoding would have cost at the speed that the machine had just then.
        self._plain_seconds += done.tokens * self._engine.acceptance_profile.costs.target(1, done.context)

    def _tally(self, done: Round) -> None:
        if done.origin is None:
            return
        submitted, kept = done.drafted if done.origin != "table" else (0, 0)
        if done.origin != "table":
            tally = self.tallies.setdefault(done.origin, DrafterTally())
            tally.add(drafted=len(done.signals), submitted=submitted, accepted=kept, seconds=done.draft_seconds)
        if done.submitted > submitted:
            more, accepted = done.submitted - submitted, done.kept - kept
            tally = self.tallies.setdefault("table", DrafterTally())
            tally.add(drafted=more, submitted=more, accepted=accepted, seconds=0.0)

    def _settled(self, kept: list[int], drafts: Sequence[Draft] | None, rows: Rows) -> list[int]:
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
        self.session.rollback(self._sure)
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

    def _read(self, tokens: Sequence[int], *, keep: int | None = None) -> Rows:
        """Return the target's logits after `tokens`, or only their picks where a round needs no more."""
        if self.picks:
            picks: list[int] = self.session.pick(tokens, keep=keep)
            return picks
        rows: Tensor = self.session.forward(tokens, keep=keep)
        return rows

    def _plainly(self, token: int) -> Rows:
        """Read one token, with logits bit-identical to plain decoding's where the run is exact."""
        if self._exact is not None and self._exact.bound:
            self.session.set_padded_length(1)
        return self._read([token])

    def _emit(self, kept: Sequence[int], origin: DraftSource | None) -> Iterator[Token]:
        """Append tokens and pass on their text, up to whatever ends the answer."""
        request = self.request
        for i, token in enumerate(kept):
            self._tokens.append(token)
            source: DraftSource = "target" if origin is None or i == len(kept) - 1 else origin
            if source != "target" and self._chained is not None and i >= self._chained:
                source = "table"
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

    def receipt(self) -> Receipt:
        """Return what the run cost so far, without the time that the caller spent between tokens."""
        known, count, trees = self._engine.acceptance_profile, len(self.tokens), self.trees
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
            idle="draft" in self.drafters and "draft" not in self.tallies,
            guarantee=self._verifier.guarantee(
                self._engine.target,
                # A cache that wasn't written by one pass over the prompt may hold other bits.
                exact=not self._reused and (self._engine.batch_invariant or self._exact is not None),
            ),
            plain_seconds=self._plain_seconds or None,
            plain_measured=("profile" if known.from_profile else "this run") if self._plain_seconds else None,
            exact=self._redecode_stats,
            sequences=self._company / self._forwards if self._forwards else 1.0,
            reused_tokens=self._reused,
            tree_forwards=trees.passes if trees else 0,
            tree_candidates=trees.nodes if trees else 0,
            tree_tokens=trees.tokens if trees else 0,
        )
