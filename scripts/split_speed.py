"""The speed of training the MNIST split, against the reference form of an update and the textbook form.

The reference computes by autocast and by the modules one after the other, as every training does that has no bfloat16;
its process gives freed memory back to the system. The textbook form is written from the published description (GR App.
B): float32, one decoder pass per group, `detach` for the mask, unfused Adam, every loss read with `.item()`. The forms
that keep freed memory run in another process than those that do not; the two processes take turns.

With one thread on a CPU (`OMP_NUM_THREADS=1`), seconds are those of the processor, which other work changes little.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from figures import Figure
from turns import Step, clock, waited

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.data.images.dataset import Images
from gradroute.models.autoencoder import Autoencoder
from gradroute.tasks.base import create
from gradroute.training.devices import computing, pick_precision
from gradroute.training.fit import Fit
from gradroute.training.measures import Measure, at_least_float32
from gradroute.training.memory import keep_freed
from gradroute.training.training import Training

SQUARES = (1024, 1536, 2048, 3072, 4096)  # sizes of matrices whose products are compared with
FLOP_PER_IMAGE = 60.8e6  # matrix products of one update of setting 1 at paper sizes, one decoder pass
FAST, PAPER = 9_600, 20_480  # images of one measurement: 50 updates, 10 updates
FAST_TODAY = 12 * 60_000  # images of a run of the preset that the target was set for
KINDS = {  # of operations in a profile
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise"),
    "copies": ("aten::copy_",),
    "optimizer": ("aten::_fused_adam_",),
    "ReLU, backward": ("aten::threshold_backward",),
    "ReLU, forward": ("aten::relu", "aten::clamp_min"),
}
IN_PLACE, REFERENCE = ("product", "paper", "paper, unrouted", "paper, float32", "fast"), ("textbook", "paper", "fast")
OVERRIDES = {
    "paper": ["trainer=paper"],
    "paper, unrouted": ["trainer=paper", "routing=none"],
    "paper, float32": ["trainer=paper", "trainer.precision=float32"],
    "fast": ["trainer=fast"],
}


class PlainAbsoluteError(Measure):
    """Mean absolute error as its formula says, one operation after the other."""

    name, unit = "mae", "pixel, pixels in [-1, 1]"

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the value for each point, `(n,)`."""
        return (at_least_float32(outputs) - targets).abs().mean(1)


def read(config: Config, device: str) -> Images:
    """Load all data of a configuration onto the device."""
    images: Images = build(config.dataset, "dataset").tensors()
    return images.to(torch.device(device))


def textbook(data: Images, config: Config, points: int, device: str) -> Step:
    """Return a function that trains by `points` images as published: two decoder passes with `detach`."""
    parts = create(config, data).parts
    model, certificates = parts.model, parts.certificates
    assert isinstance(model, Autoencoder)
    optimizer = torch.optim.Adam([*model.parameters(), *certificates.parameters()], lr=1e-3, weight_decay=5e-5)

    def train() -> None:
        for chosen in torch.randperm(len(data.train_images))[:points].split(2048):
            rows = chosen.to(device)
            images, low = data.train_images[rows], data.train_labels[rows] < 5
            z = model.encoder(images)
            top, bottom = z[:, :16], z[:, 16:]
            losses = [
                (model.decoder(torch.cat([top, bottom.detach()], 1)[low]) - images[low]).abs().mean(),
                (model.decoder(torch.cat([top.detach(), bottom], 1)[~low]) - images[~low]).abs().mean(),
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

    return train


def prepared(data: Images, configs: list[Config], points: int, reference: bool = False) -> Fit:
    """Return a training of configurations together, of one epoch of `points` images."""
    tasks = [create(config, data) for config in configs]
    trainings = []
    for task, config in zip(tasks, configs, strict=True):
        objective, order = task.objective(), torch.Generator().manual_seed(config.seed)
        if reference:
            setattr(objective, "error", PlainAbsoluteError())  # noqa: B010
        own = replace(config.trainer, epochs=1)
        trainings.append(Training("train", objective, task.batch, points, own, order))
    fit = Fit(trainings, configs[0].trainer.precision, tasks[0].device)
    if reference:
        fit.program.shadows = None
    return fit


def ours(data: Images, configs: list[Config], points: int, reference: bool = False) -> Step:
    """Return a function that goes on training configurations together, by `points` images."""
    fit = prepared(data, configs, points, reference)

    def train() -> None:
        fit.epoch = fit.step = 0
        fit.run()

    return train


def best_product(precision: str, device: str, sizes: Sequence[int] = SQUARES) -> float:
    """Return the best rate of a product of square matrices of some sizes, in FLOP per second."""
    best, dtype = 0.0, torch.bfloat16 if precision == "bfloat16" else torch.float32
    for n in sizes:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        with computing("tf32" if precision == "tf32" else "float32", torch.device(device)):
            for _ in range(5):
                started = clock(device)
                a @ b
                waited(device)
                best = max(best, 2 * n**3 / (clock(device) - started))
    return best


def profile(step: Step) -> dict[str, float]:
    """Return the share of each kind of operation in a step's time on the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step()
    own = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    shares = {kind: sum(own.get(name, 0.0) for name in names) / sum(own.values()) for kind, names in KINDS.items()}
    return shares | {"the rest": 1 - sum(shares.values())}


def precision_of(config: Config, device: str) -> str:
    """Return the precision that a configuration trains in on the device."""
    return pick_precision(config.trainer.precision, torch.device(device))


def serve(connection: Connection, names: tuple[str, ...], reference: bool, device: str) -> None:
    """Measure what is asked for, in a process of its own: seconds of a step, or FLOP per second of `product`."""
    if not reference:
        keep_freed()
    configs = {n: configuration([f"trainer.device={device}", *given]) for n, given in OVERRIDES.items()}
    data, precision = read(configs["fast"], device), precision_of(configs["paper"], device)
    steps: dict[str, Step] = {}
    for name in names:
        if name == "textbook":
            steps[name] = textbook(data, configs["paper"], PAPER, device)
        elif name in configs:
            steps[name] = ours(data, [configs[name]], FAST if name == "fast" else PAPER, reference)
    with suppress(EOFError):
        while True:
            name = connection.recv()
            if name == "product":
                connection.send(best_product(precision, device))
            elif name.startswith("profile "):
                connection.send(profile(steps[name.removeprefix("profile ")]))
            else:
                started = clock(device)
                steps[name]()
                waited(device)
                connection.send(clock(device) - started)


def measured(device: str, rounds: int) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Return what every form took in every round, after one round of warm-up, and the presets' profiles on a CPU.

    Names of the reference begin so.
    """
    context, asked = get_context("spawn"), list[tuple[str, str, Connection]]()
    processes = []
    for names, reference in ((IN_PLACE, False), (REFERENCE, True)):
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(there, names, reference, device), daemon=True))
        processes[-1].start()
        there.close()
        asked += [(f"reference {n}" if reference and n != "textbook" else n, n, here) for n in names]
    asked.sort(key=lambda one: one[1])  # each form next to its reference
    found: dict[str, list[float]] = {name: [] for name, _, _ in asked}
    for number in range(rounds + 1):
        for name, own, connection in asked:
            connection.send(own)
            value = connection.recv()
            if number:
                found[name].append(value)
    profiles = {}
    for name, own, connection in asked if device == "cpu" else ():
        if own in ("paper", "fast"):
            connection.send(f"profile {own}")
            profiles[name] = connection.recv()
    for process in processes:
        process.terminate()
    return found, profiles


def split(device: str, rounds: int) -> tuple[list[dict[str, str]], list[Figure]]:
    """Measure both presets; return a table's rows, and the figures with their targets."""
    found, profiles = measured(device, rounds)
    config = configuration(["trainer=fast", f"trainer.device={device}"])
    points = config.trainer.epochs * 60_000

    def over(one: list[float], other: list[float], factor: float = 1.0) -> list[float]:
        return [factor * a / b for a, b in zip(one, other, strict=True)]

    def share(name: str, images: int) -> list[float]:
        return over([FLOP_PER_IMAGE * images / t for t in found[name]], found["product"])

    amx = device == "cpu" and precision_of(config, device) == "bfloat16"
    figures = [
        Figure("fast: time of a training, to that of the reference", over(found["fast"], found["reference fast"],
               points / FAST_TODAY), 0.55, at_most=True),
        Figure("paper: time of an update, to that of the reference", over(found["paper"], found["reference paper"])),
        Figure("paper: share of the best matrix product", share("paper", PAPER), 0.5 if amx else 0.8),
        Figure("fast: share of the best matrix product", share("fast", FAST)),
        Figure("paper: times as fast as the textbook form", over(found["textbook"], found["paper"]), 4),
        Figure("paper: routed update to unrouted", over(found["paper"], found["paper, unrouted"])),
        Figure("best matrix product, TFLOP/s", [rate / 1e12 for rate in found["product"]]),
    ]  # fmt: skip
    rows = [
        {"what": name, "images": f"{FAST if name.endswith('fast') else PAPER}",
         "seconds": Figure(name, times).shown()["median (range)"],
         **{kind: f"{share:.2f}" for kind, share in profiles.get(name, {}).items()}}
        for name, times in found.items() if name != "product"
    ]  # fmt: skip
    return rows, figures
