"""Seconds of one epoch: the textbook form beside ours, interleaved, so that a busy machine slows both alike.

The textbook form is written from the published description: float32, one decoder pass per group, `detach` for the
mask, unfused Adam at batch 2048, and each loss read with `.item()`. Ours are the `paper` and the `fast` presets.
Prints medians with their range, and each preset's ratio to the textbook epoch.

usage: python scripts/epoch_ratio.py [--rounds 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir

from gradroute import datasets
from gradroute.cli import conf_dir
from gradroute.config import from_mapping
from gradroute.loading import build
from gradroute.losses import Terms
from gradroute.models import Autoencoder
from gradroute.provenance import hardware
from gradroute.schema import Config
from gradroute.setup import Setup
from gradroute.training import fit

CPU = torch.device("cpu")


def textbook(data: datasets.Images, config: Config) -> Callable[[], None]:
    """One epoch as published: two decoder passes with `detach`."""
    parts = build(config, list(config.routing.groups), torch.zeros(1, 784))
    model, certificates = parts.model, parts.certificates
    assert isinstance(model, Autoencoder)
    optimizer = torch.optim.Adam([*model.parameters(), *certificates.parameters()], lr=1e-3, weight_decay=5e-5)

    def epoch() -> None:
        for chosen in torch.randperm(len(data.train_images)).split(2048):
            images, low = data.train_images[chosen], data.train_labels[chosen] < 5
            z = model.encoder(images)
            top, bottom = z[:, :16], z[:, 16:]
            routed_top = torch.cat([top, bottom.detach()], 1)[low]
            routed_bottom = torch.cat([top.detach(), bottom], 1)[~low]
            losses = [
                (model.decoder(routed_top) - images[low]).abs().mean(),
                (model.decoder(routed_bottom) - images[~low]).abs().mean(),
                (certificates["top"](top.detach()) - images).abs().mean(),
                (certificates["bottom"](bottom.detach()) - images).abs().mean(),
                3e-3 * z.abs().sum(1).mean(),
            ]
            s = (z - z.mean(0)) / z.std(0).clamp(min=1e-8)
            losses.append(0.1 * (s[:, :16].T @ s[:, 16:] / len(z)).abs().mean())
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            for loss in losses:
                loss.item()

    return epoch


def ours(config: Config) -> Callable[[], None]:
    """One epoch of the configured preset."""
    setup = Setup(config)
    objective, images, routed = setup.objective(), setup.data.train_images, setup.groups.routed
    parameters = [*setup.model.parameters(), *setup.certificates.parameters()]
    trainer, order = replace(config.trainer, epochs=1), torch.Generator().manual_seed(0)

    def task(chosen: torch.Tensor) -> Terms:
        return objective(images[chosen], routed[chosen])

    def epoch() -> None:
        fit(task, parameters, len(images), trainer, setup.precision, CPU, order, lambda *_: None)

    return epoch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        configs = {name: from_mapping(compose("config", [f"trainer={name}"])) for name in ("paper", "fast")}
    data = datasets.load(configs["fast"].dataset)
    epochs = {"textbook": textbook(data, configs["paper"])} | {n: ours(c) for n, c in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(arguments.rounds):
        for name, epoch in epochs.items():
            started = time.perf_counter()
            epoch()
            seconds[name].append(time.perf_counter() - started)
    print(time.strftime("%Y-%m-%d"), hardware(), "torch", torch.__version__)
    for name, times in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(times, seconds["textbook"], strict=True)]
        print(
            f"{name:9} {statistics.median(times):6.1f} s an epoch ({min(times):.1f} to {max(times):.1f}), "
            f"ratio to the textbook epoch {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )
    total = configs["fast"].trainer.epochs * statistics.median(seconds["fast"]) / statistics.median(seconds["textbook"])
    print(f"the whole fast run costs {total:.1f} textbook epochs")


if __name__ == "__main__":
    main()
