"""Generate completions of a language model, plain or steered."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.models.logits import Divided
from gradroute.routing.hooks import hooked
from gradroute.routing.sites import Site, undisturbed


def complete(
    model: nn.Module,
    prompt: torch.Tensor,
    tokens: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    context: int | None = None,
    steer: AbstractContextManager[Any] | None = None,
) -> torch.Tensor:
    """Return the prompt `(batch, length)` int64 and `tokens` more, one forward pass each: `(batch, length + tokens)`.

    Args:
        model: maps tokens to logits `(batch, length, vocabulary)`; its mode does not change.
        generator: draws the tokens, on the device of the logits; not needed at temperature 0.
        temperature: 0 takes the most likely token.
        context: the model sees at most this many of the last tokens; None means all.
        steer: entered around all forward passes, such as `steered(…)`.

    Raises: UserError for an empty prompt, values out of range, or a temperature without a generator.
    """
    if prompt.dim() != 2 or not prompt.shape[1]:
        raise UserError(f"complete: a prompt of shape {tuple(prompt.shape)}; give (batch, length), one token or more")
    if temperature < 0 or tokens < 0 or (context is not None and context < 1):
        raise UserError(f"complete: temperature={temperature}, tokens={tokens}, context={context}: must be 0 or more, "
                        "and the context 1 or more")  # fmt: skip
    if temperature and generator is None:
        raise UserError(f"complete: temperature={temperature} draws tokens; give a generator, or temperature=0")
    text = prompt
    with undisturbed(model), torch.no_grad(), steer or nullcontext():
        for _ in range(tokens):
            logits = last_logits(model, text[:, -context:] if context else text).float()
            if temperature:
                drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            else:
                drawn = logits.argmax(-1, keepdim=True)
            text = torch.cat([text, drawn], 1)
    return text


def last_logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits after the last of `tokens` `(batch, length)`: `(batch, vocabulary)`."""
    if isinstance(model, Divided):
        return model.logits(model.features(tokens)[:, -1])
    logits: torch.Tensor = model(tokens)[:, -1]
    return logits


@contextmanager
def steered(model: nn.Module, sites: Site | Iterable[Site], unit: int, amount: float) -> Iterator[None]:
    """Add `amount` to one unit of each site's output in the forward passes inside the block (GR section 4.2.1).

    Raises: UserError for an unknown site, or in the forward pass for a unit out of range.
    """

    def adding(site: Site) -> Callable[[nn.Module, Any, Any], Any]:
        def add(module: nn.Module, inputs: Any, output: Any) -> Any:
            activation = site.read(output).clone()
            units = site.units_last(activation)
            if not 0 <= unit < units.shape[-1]:
                last = units.shape[-1] - 1
                raise UserError(f"site '{site.name}': unit {unit} is out of range; units go from 0 to {last}")
            units[..., unit] += amount
            return site.replace(output, activation)

        return add

    with hooked(model, {site.module: adding(site) for site in ([sites] if isinstance(sites, Site) else sites)}):
        yield
