"""The tests' quick way to compose gives what Hydra gives."""

import composing
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from gradroute.config.compose import composed

CHOSEN = [
    [],
    ["experiment=stories_era", "trainer=smoke", "seed=3"],
    ["experiment=oversight/routing", "+environment.size=4", "~split"],
    ["experiment=class_split", "ablation={_target_: mine.Ablation}", "model={width: 8}"],
    ["model=mlp", "~ablation", "ledger=null"],
    ["+ablation@second=zero", "trainer.batch_size=7"],
]


def answer(overrides: list[str]) -> object:
    """Return the configuration, or what is said against it."""
    try:
        return OmegaConf.to_container(composed(overrides))
    except HydraException as error:
        return str(error)


@pytest.mark.parametrize("overrides", [*CHOSEN, ["model=none_such"], ["~none_such"], ["dataset@x=mnist"]], ids=" ".join)
def test_the_quick_way_is_hydras(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [answer(overrides), answer(overrides)]  # the second comes from what the first left
    for owner, name, replaced, original in composing.REPLACED:
        assert getattr(owner, name) is replaced
        monkeypatch.setattr(owner, name, original)
    right = answer(overrides)
    assert quick == [right, right]
