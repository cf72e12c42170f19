"""The quantisation attack on what is exported: does rounding bring back what a profile leaves out?

Unlearning that moves weights only a little can be undone by rounding them (Zhang et al., arXiv 2410.16454).
"""

from torch import nn

from gradroute.audit.attacks import rounded
from gradroute.audit.units import restored
from gradroute.errors import UserError
from gradroute.tasks.base import Task
from gradroute.tasks.language import LanguageModelling

Losses = dict[str, float]


def group_losses(task: Task, model: nn.Module, bits: int) -> tuple[Losses, Losses]:
    """Return the loss of each group's test documents before and after rounding, in nats per token.

    Every matrix is rounded to `bits` bits, as `gradroute-export --quantize` does. The model is as it was afterwards.

    Raises: UserError for a task other than language modelling.
    """
    if not isinstance(task, LanguageModelling):
        raise UserError(f"--attack: is for language models, not for task={task.kind}")
    test = task.data.test, task.test_groups
    before = task.group_losses(model, *test)
    with restored(model):
        rounded(model, bits)
        return before, task.group_losses(model, *test)
