"""Measure the models of a stack of runs in one pass, as they are trained: many take a GPU no longer than one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from gradroute.routing.ablation import Ablation
from gradroute.tasks.evaluation import CHUNK, ByImage, Head, outputs

if TYPE_CHECKING:
    from gradroute.tasks.images import ImageTask

LEAST = 256  # images in one forward pass of a stack; where training takes larger batches, as many as these


class _Heads(nn.Module):
    """Every head of a task as one module; or, of an ablated model, the decoder alone."""

    def __init__(self, task: "ImageTask", ablated: nn.Module | None = None, name: str = "") -> None:
        super().__init__()
        self.model, self.name = ablated or task.model, name
        if not name:
            self.certificate, self.fresh_certificate = task.certificates, task.fresh
        self._regions, self._takes_groups = task.router.regions, task.takes_groups

    def forward(self, images: torch.Tensor, group_index: torch.Tensor) -> dict[Head, torch.Tensor]:
        """Return the outputs for images with group numbers `(n,)`."""
        certified = {} if self.name else {n: getattr(self, n) for n in ("certificate", "fresh_certificate")}
        found = outputs(self.model, certified, self._regions, [], images, group_index if self._takes_groups else None)
        return {Head("decoder_ablated", self.name): output for output in found.values()} if self.name else found


class Together:
    """The tasks of a stack of runs, with each one's ablations: the first that asks for its errors measures all.

    Its numbers are those of each task measured alone, to rounding.
    """

    def __init__(self, tasks: Sequence["ImageTask"], ablations: Sequence[Sequence[Ablation]]) -> None:
        self.tasks, self.ablations = tasks, ablations
        self._found: dict[int, ByImage] | None = None

    def errors(self, task: "ImageTask") -> ByImage | None:
        """Return every measure of every head on every test image, see `image_errors`; None if a task asks again."""
        if self._found is None:
            self._found = dict(enumerate(self._measured()))
        return self._found.pop(self.tasks.index(task), None)

    @torch.no_grad()
    def _measured(self) -> list[ByImage]:
        first, count = self.tasks[0], len(self.tasks)
        rows: list[dict[tuple[Head, str], list[torch.Tensor]]] = [{} for _ in self.tasks]
        size = max(LEAST, min(CHUNK, first.config.trainer.batch_size))
        data = [each.split(size) for each in (first.test_images, first.targets(train=False), first.test_groups)]
        for called in self._passes():
            for images, targets, groups in zip(*data, strict=True):
                wanted = targets.repeat(count, *[1] * (targets.dim() - 1))
                for head, output in called(images, groups).items():
                    for metric, measure in first.measures.items():
                        values = measure(output.flatten(0, 1), wanted).view(count, -1)
                        for own, value in zip(rows, values, strict=True):
                            own.setdefault((head, metric), []).append(value)
        return [{key: torch.cat(values) for key, values in own.items()} for own in rows]

    def _passes(self) -> Iterator[Any]:
        """Yield functions that map images and group numbers to outputs `(tasks, n, …)` by head, in a task's order."""
        yield _stacked([_Heads(task) for task in self.tasks])
        alike = self.tasks[0].ablation.alike
        for each in zip(*self.ablations, strict=True):
            with ExitStack() as stack:
                ablated = [stack.enter_context(a.applied(t.model)) for a, t in zip(each, self.tasks, strict=True)]
                heads = [_Heads(t, m, each[0].name) for t, m in zip(self.tasks, ablated, strict=True)]
                yield _stacked(heads) if alike else _in_turn(heads)


def _stacked(heads: Sequence[_Heads]) -> Any:
    """Return one program of modules that differ in their parameters only."""
    parameters, buffers = stack_module_state(list(heads))

    def called(*inputs: torch.Tensor) -> Any:
        return vmap(lambda *state: functional_call(heads[0], state, inputs))(parameters, buffers)

    return called


def _in_turn(heads: Sequence[_Heads]) -> Any:
    """Return the modules called one after the other, where they differ in more."""

    def called(*inputs: torch.Tensor) -> dict[Head, torch.Tensor]:
        each = [own(*inputs) for own in heads]
        return {head: torch.stack([own[head] for own in each]) for head in each[0]}

    return called


def _alike(tasks: Sequence[Any]) -> bool:
    """Return whether tasks measure the same heads on the same images."""
    if len(tasks) < 2 or not all(hasattr(task, "test_images") for task in tasks):
        return False
    first = tasks[0]
    return all(
        type(task) is type(first)
        and task.test_images.is_set_to(first.test_images)  # the same memory, and as many
        and list(task.fresh) == list(first.fresh)
        and (not task.takes_groups or torch.equal(task.test_groups, first.test_groups))
        for task in tasks
    )


@contextmanager
def measured_together(tasks: Sequence[Any], ablations: Sequence[Sequence[Ablation]]) -> Iterator[None]:
    """Have the tasks of a stack measured in one pass inside the block, once each, while none of them changes.

    Tasks that are not on the same images are measured one after the other, as outside.
    """
    names = {tuple(ablation.name for ablation in own) for own in ablations}
    together = Together(tasks, ablations) if len(names) == 1 and _alike(tasks) else None
    try:
        for task in tasks:
            task.together = together.errors if together else None
        yield
    finally:
        for task in tasks:
            task.together = None
