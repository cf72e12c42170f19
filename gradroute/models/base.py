"""Build a run's model from any class or function that returns a module, or from a plan."""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from inspect import isclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from gradroute.config.doors import TARGET
from gradroute.config.targets import arguments_of, build, construct, locate
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError, first_line
from gradroute.models.outlines import meta
from gradroute.models.perceptron import Perceptron

HIDDEN = 512  # hidden units of a certificate that the model does not make itself


class ModelPlan(ABC):
    """A model before it is built. Subclass it only where a module's constructor does not suffice.

    Attributes: `tokenizer`, which returns the model's own, or None; `smaller`, what to do if the model is too large.
    """

    tokenizer: Callable[[], Tokenizer] | None = None
    smaller: str = "choose a smaller model"

    def fetch(self) -> None:  # noqa: B027  # most plans need nothing
        """Fetch what a new run needs, except the weights. Raises: UserError."""

    def read_back(self, run: Path) -> None:  # noqa: B027
        """Read it from a run's folder, which may be untrusted, instead: use no other source and run no code."""

    @abstractmethod
    def build(self, **found: Any) -> nn.Module:
        """Return the initial model.

        Args:
            found: what the run supplies: `shape` of an image and the number of `classes`, or the size of the
                `vocabulary` and the `context`, tokens per row; and the names of the `groups`.

        Raises: UserError if these do not fit the model.
        """

    def outline(self, **found: Any) -> nn.Module:
        """Return the same model on the meta device, with shapes and no numbers."""
        with meta():
            return self.build(**found)

    def kept(self, tokenizer: Tokenizer) -> dict[str, str]:
        """Return the files that a run keeps to rebuild the model, if its configuration does not suffice."""
        return {}


class Constructed(ModelPlan):
    """A model that a class or function makes from its arguments and from what the run supplies.

    The run supplies the parameters called `shape`, `classes`, `vocabulary`, `context` and `groups` if the signature has
    them and the configuration does not give them.
    """

    def __init__(self, target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self.target, self.arguments = target, dict(arguments)

    def build(self, **found: Any) -> nn.Module:
        """Call the target. Raises: UserError if it fails, or does not return a module."""
        name = getattr(self.target, "__qualname__", str(self.target))
        try:
            model = construct(self.target, self.arguments, "model", **found)
        except UserError:
            raise
        except Exception as error:  # whatever the user's constructor raises
            said = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"model: {name} cannot be built ({said})") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"model: {name} returns a {type(model).__name__}; return a torch.nn.Module")
        return model


def plan_of(component: Mapping[str, Any], run: Path | None = None) -> ModelPlan:
    """Return the plan of a configuration's model; with `run`, read from that run's folder. Raises: UserError."""
    target = locate(component.get(TARGET), "model")
    if not (isclass(target) and issubclass(target, ModelPlan)):
        return Constructed(target, arguments_of(component))
    plan: ModelPlan = build(component, "model")
    if run is None:
        plan.fetch()
    else:
        plan.read_back(run)
    return plan


def takes_flat_images(component: Mapping[str, Any]) -> bool:
    """Return whether a configuration's model takes images `(n, pixels)`, as its attribute `flat_inputs` says."""
    return bool(getattr(locate(component.get(TARGET), "model"), "flat_inputs", False))


def perceptron(widths: Sequence[int], last_bias: bool = True) -> Perceptron:
    """Return linear layers `linear0, act0, linear1, …` with ReLU between, and PyTorch's default initialisation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = len(widths) - 2
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers[f"linear{i}"] = nn.Linear(inputs, outputs, bias=i < last or last_bias)
        if i < last:
            layers[f"act{i}"] = nn.ReLU()
    return Perceptron(layers)


def certificate_of(model: nn.Module, seen: Sequence[int], outputs: int) -> nn.Module:
    """Return an untrained certificate, which maps activations `(…, units)` of a region to `outputs` numbers.

    The model's own method `certificate(seen, outputs)` makes it; without one, it is a perceptron with one hidden layer.
    Raises: UserError for activations that the model's certificates cannot see.
    """
    own = getattr(model, "certificate", None)
    if callable(own):
        made: nn.Module = own(seen, outputs)
        return made
    layers = perceptron([math.prod(seen), HIDDEN, outputs])
    return Perceptron(OrderedDict(flatten=nn.Flatten(), **dict(layers.named_children())))
