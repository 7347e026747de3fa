"""What the engine needs of a classifier, whether or not exits are attached to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from dynx.early_exit.attach.hidden_state import Outcome, State, Watch
    from dynx.early_exit.attach.pooling import Kind


class ClassifierModel(Protocol):
    """A transformers classifier that runs in parts (`ExitModel`), or only at full depth (`FullDepthModel`)."""

    model: Any
    """The transformers model."""
    kind: Kind
    merges_lengths: bool
    """Whether padding leaves the model's answers unchanged, so that rows of different lengths may share a batch."""

    @property
    def depth(self) -> int:
        """Number of blocks in a forward, L."""

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        start: State | None = None,
        watch: Watch | None = None,
        exits: Collection[int] = (),
        stop: int | None = None,
    ) -> Outcome:
        """Run one forward without gradients; `ExitModel.run` documents the arguments."""

    def pool(self, hidden: Tensor, inputs: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Pool hidden states (R, …) into features (R, F)."""

    def detach(self) -> None:
        """Restore the transformers model as it was before."""
