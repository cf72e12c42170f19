"""Every sweep has a folder of its own, and Hydra's own settings for folders are refused."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradroute.commands.run import composed_configs
from gradroute.config.compose import configuration
from gradroute.errors import UserError
from gradroute.records.new_folder import new_folder

Command = Callable[..., Any]
SMALL = ["trainer=smoke", "trainer.train_limit=128", "trainer.test_limit=64", "trainer.batch_size=64",
         "model.hidden=[32]", "steps=[train,evaluate]", "trainer.device=cpu"]  # fmt: skip


def test_processes_that_ask_for_one_name_get_folders_of_their_own(tmp_path: Path) -> None:
    start = threading.Barrier(16)

    def ask(_: int) -> Path:
        start.wait()
        return new_folder(tmp_path / "deep" / "sweep")

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(ask, range(16)))
    assert {path.name for path in made} == {"sweep", *(f"sweep-{n}" for n in range(2, 17))}
    assert all(path.is_dir() for path in made)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]], ids=["own", "joblib"])
def test_two_sweeps_of_one_second_do_not_share_a_folder(
    launcher: list[str], forked: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the folders' names stands still, in a configuration of the user's own."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    fixed = {"defaults": ["mnist_split"], "hydra": {"sweep": {"dir": "outputs/sweeps/now"}}}
    (tmp_path / "conf" / "experiment" / "fixed.yaml").write_text("# @package _global_\n" + yaml.safe_dump(fixed))
    given = ["experiment=fixed", *SMALL, *launcher]
    for seeds in ("0,1", "2,3"):
        result = forked("gradroute-run", "--config-dir", "conf", "-m", f"seed={seeds}", *given, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    found = []
    for name in ("now", "now-2"):
        folder = tmp_path / "outputs" / "sweeps" / name
        assert {"jobs.csv", "runs.json", "multirun.yaml", "comparison.csv"} <= {path.name for path in folder.iterdir()}
        found.append([run.rsplit("_", 1)[1] for run in json.loads((folder / "runs.json").read_text())["runs"]])
    assert found == [["seed0", "seed1"], ["seed2", "seed3"]]


KEYS = ["hydra.run.dir", "++hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("made", [composed_configs, configuration])
def test_hydras_folders_are_refused_with_what_to_give(key: str, made: Callable[..., object]) -> None:
    with pytest.raises(UserError) as error:
        made([f"{key}=elsewhere"])
    assert str(error.value) == f"{key.lstrip('+')}: gradroute makes the folders of runs and sweeps; give " \
                               "output_dir=FOLDER"  # fmt: skip


def test_hydras_run_folder_in_a_file_is_refused_too(forked: Command, tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [mnist_split]\nhydra: {run: {dir: elsewhere}}\n"
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text(text)
    result = forked("gradroute-run", "--config-dir", "conf", "experiment=own", *SMALL, cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: hydra.run.dir: ") and "output_dir=" in result.stderr
    assert not (tmp_path / "outputs").exists()
