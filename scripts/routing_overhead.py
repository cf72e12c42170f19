"""Measure the cost of routing: a training step unrouted, routed with the ledger on, and with the textbook `detach`.

Two models: the MNIST autoencoder with all its losses at batch 2048, and a 6-layer, width-384 transformer with the MLPs
of five layers routed by sequence. One model and one optimizer take all kinds of steps in turn, in random order, so that
a busy machine slows all alike. Prints, for each kind, the median ratio to the unrouted step of the same round with its
95 % interval from order statistics, and the ratio of the total times; writes them as JSON with `--json`.

usage: python scripts/routing_overhead.py [--pairs 200] [--json FILE]
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from turns import Step, timed

from gradroute import ParameterRouter, Region, Router
from gradroute.config.compose import configuration
from gradroute.records.provenance import hardware
from gradroute.routing.hooks import hooked
from gradroute.running.exit_status import guarded
from gradroute.tasks.reconstruction import Reconstruction
from gradroute.training.ledger import Ledger
from gradroute.training.measures import MAE
from gradroute.training.objectives import group_means
from gradroute.training.penalties import correlation_penalty, l1_penalty

WINDOW, EVERY = 100, 10  # the ledger's defaults


def ledger_of(router: Router, group: torch.Tensor) -> Ledger:
    """Return a ledger as a run keeps it."""
    return Ledger(router, ParameterRouter(router.model, {}, router.groups, {}), group, WINDOW, EVERY)


def textbook(router: Router, group: torch.Tensor) -> ExitStack:
    """Attach hooks that compute `m * a + (1 - m) * a.detach()` at every site, until the stack is closed."""

    def hook(mask: torch.Tensor) -> Callable[[nn.Module, Any, Any], torch.Tensor]:
        def detach(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            m = mask[group].view(len(group), *[1] * (output.dim() - 2), -1).to(output.dtype)
            return m * output + (1 - m) * output.detach()

        return detach

    stack = ExitStack()
    stack.enter_context(hooked(router.model, {site.module: hook(router.masks[site.name]) for site in router.sites}))
    return stack


def autoencoder() -> dict[str, Step]:
    """Return the training step of each kind of mnist_split, at `paper` in the precision that `auto` picks."""
    task = Reconstruction(configuration(["trainer=paper", "trainer.train_limit=2048"]))
    model: Any = task.model
    images, group, objective = task.data.train_images, task.routed, task.objective()
    parameters = [*model.parameters(), *task.certificates.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=5e-5, fused=True)
    ledger, step = ledger_of(task.router, group), iter(range(10**9))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=task.config.trainer.precision == "bfloat16")

    def finish(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def by_hand(mask: torch.Tensor | None) -> None:
        """Train on the same losses without hooks; with a mask, in the textbook form."""
        with autocast:
            loss = losses(mask)
        finish(loss)

    def losses(mask: torch.Tensor | None) -> torch.Tensor:
        z = model.encoder(images)
        seen = z if mask is None else mask * z + (1 - mask) * z.detach()
        parts = {"top": z[:, :16], "bottom": z[:, 16:]}
        terms = [group_means(MAE(model.decoder(seen), images), group, 2).sum()]
        for name, part in parts.items():
            terms.append(MAE(task.certificates[name](part.detach()), images).mean())
            terms.append(3e-3 * l1_penalty(part.float()))
        terms.append(0.1 * correlation_penalty([part.float() for part in parts.values()]))
        return torch.stack(terms).sum()

    def routed() -> None:
        number = next(step)
        task.router.at_step(number)
        objective.monitor = ledger.begin(number, group)
        with autocast:
            terms = objective(images, group)
        finish(torch.stack([value * weight for value, weight in terms.values()]).sum())

    return {
        "unrouted": lambda: by_hand(None),
        "routed + ledger": routed,
        "textbook detach": lambda: by_hand(task.router.masks["encoder"][group]),
    }


class Transformer(nn.Module):
    """A decoder-only language model built from PyTorch's layers: 6 layers, width 384."""

    def __init__(self, vocabulary: int = 2048, width: int = 384, tokens: int = 128) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.blocks = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(tokens))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits `(batch, tokens, vocabulary)`."""
        logits: torch.Tensor = self.head(self.blocks(self.embed(tokens), mask=self.mask, is_causal=True))
        return logits


def transformer() -> dict[str, Step]:
    """Return each kind of step, float32, 8 sequences of 128 tokens; half of each routed MLP is closed to one group."""
    torch.manual_seed(0)
    model, tokens = Transformer(), torch.randint(2048, (8, 129))
    group = torch.arange(8) % 2
    half = Region("blocks.layers.[0-4].linear1", "0:768")
    router = Router(model, {"half": half}, ["forget", "retain"], {"retain": {"half": 0.0}}, tokens[:1, :-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ledger, step = ledger_of(router, group), iter(range(10**9))

    def finish() -> None:
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def routed() -> None:
        number = next(step)
        router.at_step(number)
        with router.route(group, ledger.begin(number, group)):
            finish()

    def detached() -> None:
        with textbook(router, group):
            finish()

    return {"unrouted": finish, "routed + ledger": routed, "textbook detach": detached}


def median_interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median from order statistics (normal approximation of the binomial)."""
    ordered, n = sorted(values), len(values)
    reach = 1.96 * math.sqrt(n) / 2
    return ordered[max(0, math.floor(n / 2 - reach))], ordered[min(n - 1, math.ceil(n / 2 + reach))]


def measure(name: str, steps: dict[str, Step], pairs: int, compiled: str = "") -> dict[str, Any]:
    """Time every kind of step once per round; print and return the ratios to the unrouted step.

    compiled: the ending of the names of compiled kinds, whose ratio is to the unrouted step with that ending.
    """
    seconds = timed(steps, pairs, 5)
    result: dict[str, Any] = {"pairs": pairs}
    for kind, times in seconds.items():
        base = seconds["unrouted" + (compiled if compiled and kind.endswith(compiled) else "")]
        ratios = [mine / plain for mine, plain in zip(times, base, strict=True)]
        low, high = median_interval(ratios)
        mean = sum(times) / sum(base)
        found = {"milliseconds": 1e3 * statistics.median(times), "median": statistics.median(ratios)}
        result[kind] = found | {"low": low, "high": high, "mean": mean}
        print(
            f"{name:12} {kind:36} {found['milliseconds']:7.1f} ms, ratio: median {found['median']:.4f} "
            f"({low:.4f} to {high:.4f}), of the total times {mean:.4f}",
            flush=True,
        )
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--json", default=None)
    arguments = parser.parse_args()
    random.seed(0)
    facts = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, **hardware()}
    print(facts)
    results = {kind.__name__: measure(kind.__name__, kind(), arguments.pairs) for kind in (transformer, autoencoder)}
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(facts | results, file, indent=2)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
