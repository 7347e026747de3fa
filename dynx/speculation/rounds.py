"""The decoding loop: a round of one text or of many, choose → draft → verify → accept → learn.

Every text chooses a drafter by its own policy and drafts. One pass of the target verifies the drafts of all. By its rows each
accepts drafts by its own rule, rolls its cache back and learns. A text by itself is a round of one. Its passes are its session's
own, which may leave the model early. With others, passes are those of a batch (`runtime.backends.batch_rows`), where other texts'
prompts may be read as well, and policies price a pass by all that it holds (`SharedCosts`).

Times are seconds. Letters: V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.runtime.costs import MIN_SECONDS
from dynx.speculation.drafters.batch import SharedModelDrafter
from dynx.speculation.policy import Round

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.runtime.backends.batch_rows import Rows, SessionBatch
    from dynx.runtime.backends.eager_batch import EagerBatch
    from dynx.runtime.backends.interface import Part
    from dynx.speculation.run import Proposal, Run
    from dynx.speculation.shared_costs import SharedCosts
    from dynx.speculation.types import DraftSource


class Rounds:
    """Runs rounds; with a `batch` and its `costs` those of many texts, without one those of a text by itself."""

    def __init__(
        self,
        clock: Callable[[], float],
        batch: EagerBatch | SessionBatch | None = None,
        costs: SharedCosts | None = None,
    ) -> None:
        self._clock, self._batch, self._costs = clock, batch, costs
        self.read: list[tuple[Rows, float]] = []
        """After a round: rows of the parts that only read, and their shares of the pass's time."""

    def run(
        self, runs: Sequence[Run], reading: Callable[[int], Sequence[Part]] | None = None
    ) -> list[tuple[list[int], DraftSource | None]]:
        """Run a round; return each text's tokens to append and the source of all but the last.

        `reading` returns parts that only read, given the tokens that the pass has without them. Raises CacheFull with no text
        changed.
        """
        clock = self._clock
        start = clock()
        proposals = self._propose(runs)
        parts = reading(sum(len(p.tokens) for p in proposals)) if reading is not None else ()
        drafted = clock()
        found = self._verify(runs, proposals, parts)
        kept = [run.accept(p, rows) for run, p, rows in zip(runs, proposals, found, strict=False)]
        verified = clock()
        kept = [run.settle(p, new, rows) for run, p, new, rows in zip(runs, proposals, kept, found, strict=False)]
        self.read, shares = self._shares(proposals, parts, found, verified - drafted)
        finished = clock()
        # A text drafts by itself or with the others. All other time beside the pass is the same for each.
        own = sum(p.draft_seconds for p in proposals)
        rest = max(0.0, finished - start - own - (verified - drafted)) / max(1, len(runs))
        for run, p, new, spent in zip(runs, proposals, kept, shares, strict=True):
            if self._costs is not None:
                self._costs.beside(len(p.submitted))
            run.learn(
                Round(
                    p.context,
                    p.origin,
                    p.tokens_behind,
                    p.signals,
                    len(p.submitted),
                    len(new) - 1,
                    p.draft_seconds,
                    spent,
                    p.draft_seconds + spent + rest,
                    p.replay_seconds,
                    p.chain_result,
                ),
                len(runs),
            )
        return [(new, p.origin) for new, p in zip(kept, proposals, strict=True)]

    def _propose(self, runs: Sequence[Run]) -> list[Proposal]:
        """Return what each text has to verify. Policies decide in turn, by a pass that holds what those before decided."""
        costs, limit = self._costs, None if self._batch is None else self._batch.room
        if costs is not None:
            costs.begin(len(runs))
        proposals: list[Proposal] = []
        together: list[tuple[Run, Proposal]] = []
        for run in runs:
            proposal = run.propose(limit)
            proposals.append(proposal)
            if proposal.origin == "draft" and isinstance(run.drafters["draft"], SharedModelDrafter):
                together.append((run, proposal))
                continue
            run.draft(proposal)
            run.submit(proposal)
            if self._batch is None or self._batch.ragged:
                run.branch(proposal)
            if costs is not None:
                costs.add(len(proposal.submitted))
        if together:
            self._draft_together(together)
            for run, proposal in together:
                run.submit(proposal)
                if self._batch is None or self._batch.ragged:
                    run.branch(proposal)
                if costs is not None:
                    costs.add(len(proposal.submitted))
        if costs is not None and self._batch is not None and not self._batch.ragged:
            costs.trim(runs, proposals)
        return proposals

    def _draft_together(self, asking: Sequence[tuple[Run, Proposal]]) -> None:
        """Draft with the model that several texts share, a token of each in a pass."""
        clock = self._clock
        drafters = [d for run, _ in asking if isinstance(d := run.drafters["draft"], SharedModelDrafter)]
        model = drafters[0].model
        began = clock()
        model.sync(drafters)
        reading, made = (clock() - began) / len(asking), 0
        for _, proposal in asking:
            proposal.draft_seconds = reading
        while any(wanted := [len(p.drafts) == made and run.wants_more(p) for run, p in asking]):
            began = clock()
            found = model.propose(drafters, [p.drafts for _, p in asking], wanted)
            spent = clock() - began
            if self._costs is not None and model.fed:
                self._costs.whole.draft.observe(model.fed, 0, spent)
            for (_, proposal), asked, draft in zip(asking, wanted, found, strict=True):
                if draft is not None:
                    proposal.drafts.append(draft)
                proposal.draft_seconds += spent / sum(wanted) if asked else 0.0
            made += 1

    def _verify(self, runs: Sequence[Run], proposals: Sequence[Proposal], reading: Sequence[Part]) -> Sequence[Rows]:
        """Run the target's pass; return the rows of each text, then those of each part that only reads."""
        if self._batch is None:
            return [run.verify(p) for run, p in zip(runs, proposals, strict=True)]
        return self._batch.forward([*[run.part(p) for run, p in zip(runs, proposals, strict=True)], *reading])

    def _shares(
        self, proposals: Sequence[Proposal], reading: Sequence[Part], found: Sequence[Rows], seconds: float
    ) -> tuple[list[tuple[Rows, float]], list[float]]:
        """Divide a pass's time; return the rows and shares of the parts that read, and the shares of the texts.

        Prompts pay by their tokens, and texts what `SharedCosts` expects of each.
        """
        if self._batch is None or self._costs is None:
            return [], [seconds]
        costs = self._costs
        tokens = self._batch.tokens([len(p.tokens) for p in proposals])
        whole = tokens + sum(len(part.tokens) for part in reading)
        if proposals:
            costs.whole.observe(whole, seconds)
        weights = [costs.beside(len(p.submitted)).target(len(p.tokens)) for p in proposals]
        own = seconds * tokens / max(1, whole) / max(sum(weights), MIN_SECONDS)
        read = [
            (rows, seconds * len(part.tokens) / whole)
            for part, rows in zip(reading, found[len(proposals) :], strict=True)
        ]
        return read, [own * weight for weight in weights]
