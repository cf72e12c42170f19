"""The step `pretrain`: on whose documents it trains."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gradroute.config.compose import configuration
from gradroute.data.text.packing import IGNORED
from gradroute.errors import UserError
from gradroute.steps.pretrain import Pretrain
from gradroute.tasks.base import create
from gradroute.tasks.language import LanguageModelling

TINY = [
    "experiment=stories_era/base", "trainer=smoke", "trainer.device=cpu", "model.layers=1", "model.width=16",
    "model.heads=2", "model.hidden=24", "dataset.stories=40", "dataset.test_stories=40", "relearn.documents=[2]",
    "completions=null",
]  # fmt: skip


def predicted(task: LanguageModelling, group: str | list[str]) -> int:
    """Return how many tokens the step's training predicts in an epoch."""
    run = cast(Any, SimpleNamespace(task=task, config=task.config, training=lambda probe, on_epoch: probe))
    (probe,) = cast(Any, list(Pretrain(group=group).trainings(run)))
    return int((probe.batch(slice(None))[1] != IGNORED).sum())


def test_a_list_of_groups_is_trained_on_as_these_groups_are() -> None:
    task = create(configuration(TINY))
    assert isinstance(task, LanguageModelling)
    one, other = predicted(task, "forget"), predicted(task, ["retain"])
    assert one > 0 and other > 0 and predicted(task, ["forget", "retain"]) == one + other
    corpus = task.data.train.corpus
    assert one + other == len(corpus.tokens) - len(corpus.lengths)  # all but each document's first


@pytest.mark.parametrize("group", ["[]", "[retain,x]", "x"])
def test_no_group_and_an_unknown_one_are_refused(group: str) -> None:
    with pytest.raises(UserError, match=r"pretrain\.group") as raised:
        configuration([*TINY, "steps=[pretrain,train,evaluate,report]", "relearn=null", f"+pretrain.group={group}"])
    assert len(str(raised.value).splitlines()) == 1
