"""A classifier's segments compiled by OpenVINO, run one by one on arrays."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynx.early_exit.segments.names import HIDDEN
from dynx.runtime.backends.openvino.tracing import compile_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[Any]]


class SegmentedModel:
    """Segments that follow one another, the last of which gives the logits. One run at a time.

    `borders` are the numbers of the blocks that segments end after, without the last; `depth` counts all blocks.
    """

    def __init__(
        self,
        graphs: Sequence[Any],
        borders: Sequence[int],
        depth: int,
        *,
        precision: str,
        threads: int,
        kind: Literal["text", "image"],
        merges_lengths: bool,
    ) -> None:
        self.borders, self.depth, self.precision = tuple(borders), depth, precision
        self.kind: Literal["text", "image"] = kind
        self.merges_lengths = merges_lengths
        self.ends = (*self.borders, depth)
        """The block that each segment ends after."""
        if len(graphs) != len(self.ends) or any(a >= b for a, b in pairwise((0, *self.ends))):
            raise ValueError(f"{len(graphs)} graphs for segments that end after {self.ends}")
        self._names = [[port.get_any_name() for port in graph.inputs] for graph in graphs]
        self._outputs = [len(graph.outputs) for graph in graphs]
        self._requests = [compile_request(graph, precision, threads) for graph in graphs]
        used = {name for names in self._names for name in names} - {HIDDEN}
        self.input_names = tuple(sorted(used))
        """Inputs of the model that any segment takes."""
        self._later = {name for names in self._names[1:] for name in names}

    def __len__(self) -> int:
        return len(self.ends)

    def needed_later(self, name: str) -> bool:
        """Whether a segment after the first takes this input."""
        return name in self._later

    def run(self, number: int, inputs: Inputs, hidden: NDArray[np.float32] | None = None) -> list[NDArray[np.float32]]:
        """Run one segment on R rows; return hidden states (R, T, D) and features (R, F), or from the last logits (R, C).

        Of a model that labels tokens the features are the hidden states, and logits are (R, T, C). The arrays are views that
        the segment's next run overwrites.
        """
        import openvino as ov

        request = self._requests[number]
        given = [hidden if name == HIDDEN else inputs[name] for name in self._names[number]]
        arrays = [np.ascontiguousarray(array) for array in given]  # alive until the result is there
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
        request.infer()
        found = [request.get_output_tensor(i).data for i in range(self._outputs[number])]
        return found * 2 if len(found) == 1 and number < len(self.ends) - 1 else found

    def run_all(self, inputs: Inputs) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        """Run all segments on the same rows; return copies of the features (R, F) at each border, and the logits (R, C)."""
        features: list[NDArray[np.float32]] = []
        hidden: NDArray[np.float32] | None = None
        for number in range(len(self.ends) - 1):
            hidden, pooled = self.run(number, inputs, hidden)
            features.append(pooled.copy())
        return features, self.run(len(self.ends) - 1, inputs, hidden)[0].copy()
