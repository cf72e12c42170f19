"""The benchmark's figures, and the reference that it compares the training with."""

import json
from pathlib import Path

import pytest
import torch
from scripted import script
from small_images import small

from gradroute.tasks.base import create
from gradroute.tasks.images import ImageTask

figures, split_speed, gpu = (script(name) for name in ("figures", "split_speed", "gpu"))


def test_figures_say_whether_the_median_reaches_the_target(tmp_path: Path) -> None:
    given = [
        figures.Figure("share", [0.4, 0.6, 0.7], 0.5), figures.Figure("ratio", [0.4, 0.6, 0.7], 0.5, at_most=True),
        figures.Figure("rate", [2.0]),
    ]  # fmt: skip
    figures.write(tmp_path / "figures.json", given)
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert [row["reached"] for row in rows] == [True, False, None]
    assert rows[0] == {"name": "share", "value": 0.6, "low": 0.4, "high": 0.7, "target": 0.5, "reached": True}
    assert given[1].shown()["target"] == "≤ 0.5" and given[1].shown()["reached"] == "no"


def test_the_reference_trains_as_ours_does() -> None:
    config, found = small("trainer.precision=bfloat16"), list[list[torch.Tensor]]()
    task = create(config)
    assert isinstance(task, ImageTask)
    for reference in (False, True):
        fit = split_speed.prepared(task.data, [config], 96, reference)
        assert (fit.program.shadows is None) == reference
        parameters = list(fit.trainings[0].objective.parameters())
        before = [p.detach().clone() for p in parameters]
        fit.run()
        found.append([p.detach() - old for p, old in zip(parameters, before, strict=True)])
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.1  # Adam's first updates go by the gradients' signs


@pytest.mark.slow
def test_the_measurements_of_a_gpu_run_in_small_on_a_cpu(tmp_path: Path) -> None:
    for part in ("stack", "sgtm"):
        gpu.make(part, gpu.DRY, tmp_path / f"gpu_{part}.json")
        found = json.loads((tmp_path / f"gpu_{part}.json").read_text())
        assert found["figures"] and all(row["value"] > 0 for row in found["figures"]) and "commit" in found


def test_the_gpu_script_goes_on_where_it_was_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def apart(part: str, dry: bool, folder: Path, seconds: float) -> str | None:
        made.append(part)
        return "too slow" if part == "row" else None

    monkeypatch.setattr(gpu, "_apart", apart)
    (tmp_path / "gpu_update.json").write_text("{}")
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--only", "update,stack,row"]) == 1
    assert made == ["stack", "row"] and capsys.readouterr().out.endswith("could not be done:\nrow: too slow\n")
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--only", "stack", "--minutes", "0.1"]) == 1
    assert "stack: no time was left" in capsys.readouterr().out
