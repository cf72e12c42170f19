"""The tests' quick way to compose gives what Hydra gives."""

from pathlib import Path

import composing
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from gradroute.config.compose import composed, configuration

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


def test_a_users_own_file_that_changed_is_read_again(tmp_path: Path) -> None:
    own = tmp_path / "experiment" / "mine.yaml"
    own.parent.mkdir()
    for seed in (3, 14):
        own.write_text(f"# @package _global_\nseed: {seed}\n")
        assert [configuration(["experiment=mine"], tmp_path).seed for _ in range(2)] == [seed, seed]
