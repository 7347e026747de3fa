"""Intercept a pipeline's text encoders and decoder: a text is encoded once, and both may run on another backend.

`forward` is replaced on the instance, as in `denoiser`, and restored afterwards. What a text encoder answered is kept by the
exact tensors that it was called with, so a kept answer is the one that it would give again, bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from dynx.runtime.backends.network import NetworkBackend

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")

DECODER = "vae.decoder"

MAX_KEPT_BYTES = 128 << 20
"""Most bytes of kept texts; T5-XXL makes 8 MB of a prompt."""

PLAIN_TYPES = type(None), bool, int, float, str


class KeptTexts:
    """Keep what text encoders answered, the latest `MAX_KEPT_BYTES`."""

    def __init__(self) -> None:
        self.encoded = 0
        """Calls that an encoder computed."""
        self._known: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def answer(self, name: str, compute: Callable[[], Any], call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Return the answer of the encoder `name` to a call, from `compute` the first time."""
        key = _key(name, call)
        if key is not None and key in self._known:
            self._known.move_to_end(key)
            return _copied(self._known[key][0])
        answer = compute()
        self.encoded += 1
        if key is not None:
            size = sum(t.numel() * t.element_size() for t in pytree.tree_leaves(answer) if isinstance(t, Tensor))
            self._known[key] = _copied(answer), size
            self._bytes += size
            while self._bytes > MAX_KEPT_BYTES:
                self._bytes -= self._known.popitem(last=False)[1][1]
        return answer


def _key(name: str, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """Return a key that only equal calls share; None for arguments of other kinds."""
    leaves, tree = pytree.tree_flatten(call)
    parts: list[Any] = [name, str(tree)]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            held = leaf.detach().cpu().contiguous()
            if held.is_floating_point():
                return None
            parts.append((tuple(held.shape), str(leaf.dtype), held.numpy().tobytes()))
        elif isinstance(leaf, PLAIN_TYPES):
            parts.append((type(leaf).__name__, leaf))
        else:
            return None
    return tuple(parts)


def _copied(answer: Any) -> Any:
    """Copy the tensors of an answer, so that nobody changes a kept one."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, answer)


class Parts:
    """The text encoders and the decoder of one pipeline; `kernels` compute those that they have an entry for."""

    def __init__(self, pipe: Any, texts: KeptTexts | None = None) -> None:
        self.pipe = pipe
        self.texts = texts or KeptTexts()
        self.kernels: dict[str, NetworkBackend] = {}
        """Backends by the names of `modules`; the others run as they were loaded."""
        self.seen: Callable[[str, Any, Any], None] | None = None
        """Callback with the name, the arguments and the keywords of every call."""

    @property
    def as_loaded(self) -> Parts:
        """The same parts without other backends."""
        return Parts(self.pipe, self.texts)

    def modules(self) -> dict[str, nn.Module]:
        """Return the parts that the pipeline has, by name."""
        found = {name: getattr(self.pipe, name, None) for name in TEXT_ENCODERS}
        found[DECODER] = getattr(getattr(self.pipe, "vae", None), "decoder", None)
        return {name: module for name, module in found.items() if module is not None}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Intercept the calls inside the `with`."""
        with ExitStack() as stack:
            for name, module in self.modules().items():
                if name in TEXT_ENCODERS or name in self.kernels or self.seen is not None:
                    stack.enter_context(self._intercepted(name, module))
            yield

    @contextmanager
    def _intercepted(self, name: str, module: nn.Module) -> Iterator[None]:
        before, forward = module.__dict__.get("forward"), module.forward
        kernels = self.kernels.get(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.seen is not None:
                self.seen(name, args, kwargs)

            def compute() -> Any:
                return forward(*args, **kwargs) if kernels is None else kernels(forward, args, kwargs)

            if name not in TEXT_ENCODERS:
                return compute()
            return self.texts.answer(name if kernels is None else f"{name} on {kernels}", compute, (args, kwargs))

        module.__dict__["forward"] = call
        try:
            yield
        finally:
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
