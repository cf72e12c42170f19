"""How a run's model is made: from any class or function that returns a module, or from a plan of its own."""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from inspect import isclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradroute.config.doors import TARGET
from gradroute.config.targets import arguments_of, build, construct, locate
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError, first_line

HIDDEN = 512  # units of a certificate of a model that does not make its own


class ModelPlan(ABC):
    """A model before it is built. Subclass it only where a module's constructor does not suffice.

    Attributes: `tokenizer`, which gives the model's own, or None; `smaller`, what to do if the model is too large.
    """

    tokenizer: Callable[[], Tokenizer] | None = None
    smaller: str = "choose a smaller model"

    def fetch(self) -> None:  # noqa: B027  # most plans need nothing
        """Get what a new run begins with, but for the weights. Raises: UserError."""

    def read_back(self, run: Path) -> None:  # noqa: B027
        """Get it from a run's folder instead, which a stranger may have made: nothing else is asked, no code is run."""

    @abstractmethod
    def build(self, **found: Any) -> nn.Module:
        """The model as it begins.

        Args:
            found: what the run found out: `shape` of an image and the number of `classes`, or the size of the
                `vocabulary` and the `context`, tokens of a row; and the names of the `groups`.

        Raises: UserError if they do not fit the model.
        """

    def outline(self, **found: Any) -> nn.Module:
        """The same with shapes and no numbers, on the meta device."""
        with torch.device("meta"):
            return self.build(**found)

    def kept(self, tokenizer: Tokenizer) -> dict[str, str]:
        """Files that a run keeps to read the model back from, where its configuration does not suffice."""
        return {}


class Constructed(ModelPlan):
    """A model that a class or function makes from its arguments, and from what the run found out.

    The run supplies the parameters called `shape`, `classes`, `vocabulary`, `context` and `groups` if the signature has
    them and the configuration does not give them.
    """

    def __init__(self, target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self.target, self.arguments = target, dict(arguments)

    def build(self, **found: Any) -> nn.Module:
        """Call it. Raises: UserError if it fails, or returns no module."""
        name = getattr(self.target, "__qualname__", str(self.target))
        try:
            model = construct(self.target, self.arguments, "model", **found)
        except UserError:
            raise
        except Exception as error:  # whatever the user's constructor raises
            said = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"model: {name} cannot be built ({said})") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"model: {name} returns a {type(model).__name__}; right is a torch.nn.Module")
        return model


def plan_of(component: Mapping[str, Any], run: Path | None = None) -> ModelPlan:
    """The plan of a configuration's model; with `run`, as that run's folder has it. Raises: UserError."""
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
    """Whether a configuration's model takes images `(n, pixels)`, as its attribute `flat_inputs` says."""
    return bool(getattr(locate(component.get(TARGET), "model"), "flat_inputs", False))


def perceptron(widths: Sequence[int], last_bias: bool = True) -> nn.Sequential:
    """Linear layers `linear0, act0, linear1, …` with ReLU between, the last one linear; PyTorch's default init."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = len(widths) - 2
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers[f"linear{i}"] = nn.Linear(inputs, outputs, bias=i < last or last_bias)
        if i < last:
            layers[f"act{i}"] = nn.ReLU()
    return nn.Sequential(layers)


def certificate_of(model: nn.Module, seen: Sequence[int], outputs: int) -> nn.Module:
    """An untrained certificate, which sees activations `(…, units)` of a region and gives so many outputs.

    It is what the model's own method `certificate(seen, outputs)` makes; without one, a perceptron with one hidden
    layer. Raises: UserError for what the model's certificates cannot see.
    """
    own = getattr(model, "certificate", None)
    if callable(own):
        made: nn.Module = own(seen, outputs)
        return made
    layers = perceptron([math.prod(seen), HIDDEN, outputs])
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), **dict(layers.named_children())))
