"""The command-line tool and library `llm`: a model `dynx/NAME` for each language model that has a profile, and for `story`.

    llm -m dynx/story "Once upon a time"
    llm -m dynx/./my-model "…"            # calibrated under that name

A model is loaded at its first prompt and kept. A model with a chat template gets the system prompt and the conversation so far
through it; one without continues the text of the prompts and answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field

from dynx.errors import DynxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynx.speculation.assembly import LoadedGenerator

SHIPPED = "story"


@llm.hookimpl  # type: ignore[untyped-decorator, unused-ignore]
def register_models(register: Callable[..., None]) -> None:
    """Register every language model that can be loaded by the name of its profile."""
    for name in names():
        register(DynxModel(name))


def names() -> list[str]:
    """List the shipped language model, and the models of stored profiles."""
    from dynx.runtime.profile_store import ProfileStore, profiles_folder

    stored = ProfileStore(profiles_folder(), lambda _: None).list()
    return list(dict.fromkeys([SHIPPED, *(p.model_name for p in stored if p.key.task == "generate")]))


class DynxModel(llm.Model):  # type: ignore[misc]
    """One language model."""

    can_stream = True

    class Options(llm.Options):  # type: ignore[misc]
        """How to write."""

        max_tokens: int = Field(default=256, ge=1, description="Largest number of new tokens")
        temperature: float = Field(default=0.0, ge=0, description="0 takes the most likely token")
        top_k: int = Field(default=0, ge=0, description="Sample among the k most likely tokens; 0 for all")
        top_p: float = Field(
            default=1.0, ge=0, le=1, description="Sample among the most likely tokens with this total probability"
        )
        seed: int | None = Field(default=None, ge=0, description="Makes sampling reproducible")

    def __init__(self, name: str) -> None:
        self.model_id = f"dynx/{name}"
        self._name = name
        self._loaded: LoadedGenerator | None = None

    def _open(self) -> LoadedGenerator:
        if self._loaded is None:
            from dynx.speculation import assemble, make_plan
            from dynx.speculation.plan import GeneratorRequest

            self._loaded = assemble(make_plan(GeneratorRequest(model=self._name)))
        return self._loaded

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """Yield the answer's text piece by piece."""
        try:
            yield from self._answer(prompt, response, conversation)
        except DynxError as e:
            raise llm.ModelError(" ".join(filter(None, (str(e), e.hint and f"({e.hint})")))) from e

    def _answer(self, prompt: Any, response: Any, conversation: Any) -> Iterator[str]:
        from dynx.speculation.types import Request

        loaded, given = self._open(), prompt.options
        turns = _turns(prompt, conversation)
        chat = bool(getattr(loaded.tokenizer, "chat_template", None))
        run = loaded.engine.start(
            Request(
                _ids(loaded.tokenizer, turns, chat=chat),
                given.max_tokens,
                loaded.sampling(given.temperature, given.top_k, given.top_p, None, given.seed),
                loaded.end_tokens,
                loaded.settings.stop,
                continues=not chat,
            )
        )
        for token in run:
            if token.text:
                yield token.text
        receipt = run.receipt()
        response.set_usage(input=receipt.prompt_tokens, output=receipt.tokens)
        response.response_json = {
            "finish_reason": receipt.finish_reason,
            "target_forwards": receipt.target_forwards,
            "seconds": receipt.seconds,
            "guarantee": receipt.guarantee,
        }


def _turns(prompt: Any, conversation: Any) -> list[dict[str, str]]:
    """Return the conversation as messages, the system prompt first and this prompt last."""
    turns: list[dict[str, str]] = []
    before = [] if conversation is None else conversation.responses
    system = prompt.system or next((r.prompt.system for r in before if r.prompt.system), None)
    if system:
        turns.append({"role": "system", "content": system})
    for earlier in before:
        turns.append({"role": "user", "content": earlier.prompt.prompt or ""})
        turns.append({"role": "assistant", "content": earlier.text()})
    return [*turns, {"role": "user", "content": prompt.prompt or ""}]


def _ids(tokenizer: Any, turns: Sequence[dict[str, str]], *, chat: bool) -> list[int]:
    """Return the token ids to continue. Raises llm.ModelError where the template rejects the messages."""
    if not chat:
        return list(tokenizer("".join(turn["content"] for turn in turns))["input_ids"])
    try:
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    except Exception as e:
        reason = next(iter(str(e).splitlines()), type(e).__name__)
        raise llm.ModelError(f"the model's chat template rejects this conversation: {reason}") from e
    return list(encoded["input_ids"])
