"""Comparisons of language models: methods, losses with intervals, relearning, completions side by side."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib import pyplot as plt
from robust import reseal

from gradroute.comparison import language
from gradroute.comparison.compare import compare, varying
from gradroute.comparison.intervals import interval
from gradroute.comparison.language import Setting, by_fraction, by_stage, settings_of
from gradroute.comparison.runs import Read, read_run
from gradroute.errors import UserError
from gradroute.records.metrics import COLUMNS
from gradroute.records.seal import sealed

STAGES = {"model": 1.0, "model_ablated": 2.0, "model_finetuned": 1.9, "model_relearned_16": 1.5}
EVIL = "<script>alert('x')</script>"


def fake_run(folder: Path, name: str, seed: int, fraction: float = 1.0, offset: float = 0.0, **settings: Any) -> Path:
    """Make the smallest language model's run folder that `compare` can read; `stories_base` has no ablation."""
    run = folder / name / f"run_{seed}_{fraction}_{len(settings)}"
    run.mkdir(parents=True)
    config = {"name": name, "seed": seed, "routing": {"labelled_fraction": fraction}, **settings}
    stages = {k: v for k, v in STAGES.items() if name != "stories_base" or k in ("model", "model_relearned_16")}
    rows = [
        {"head": head, "region": "all", "group": group, "metric": "cross_entropy", "unit": "", "value": value}
        for head, loss in stages.items()
        for group, value in (("forget", loss + offset + seed), ("retain", 1.0))
    ]
    lines = [",".join(COLUMNS)]
    for sample, step in ((sample, step) for sample in (0, 1) for step in (0, 4)):
        value = 3.0 + offset + seed + sample - step / 10
        lines.append(f"{step},validation,forget,model_relearned_16,sample_{sample},cross_entropy,nats,{value}")
    texts = [{"prompt": EVIL, "group": "forget", "head": head, "text": f" {name} {seed} {head}"}
             for head in stages if "relearned" not in head]  # fmt: skip
    files = {"config.yaml": yaml.safe_dump(config), "summary.json": json.dumps({"headline": rows}),
             "metrics.csv": "\n".join(lines) + "\n", "completions.json": json.dumps(texts)}  # fmt: skip
    for file, text in files.items():
        (run / file).write_text(text)
    (run / "manifest.json").write_text(json.dumps(sealed({"state": "finished", "packages": {}, "files": {}})))
    reseal(run)
    return run


def made(runs: list[Path]) -> list[Setting]:
    reads: list[Read] = [read_run(run) for run in runs]
    return settings_of(reads, varying(reads))


def test_methods_are_names_and_what_else_differs(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path, "stories_era", seed, fraction) for seed in (1, 0) for fraction in (0.25, 1.0)]
    runs += [fake_run(tmp_path, "stories_base", 0)]
    found = {(s.method, s.fraction): [read.settings["seed"] for read in s.reads] for s in made(runs)}
    assert found == {("stories_era", 0.25): [0, 1], ("stories_era", 1.0): [0, 1], ("stories_base", 1.0): [0]}
    runs += [fake_run(tmp_path / str(lr), "stories_era", 0, trainer={"lr": lr}) for lr in (0.1, 0.2)]
    methods = {s.method for s in made(runs)}
    assert methods == {"stories_base", *(f"stories_era, trainer.lr={lr}" for lr in ("None", "0.1", "0.2"))}


def test_a_method_without_labels_is_the_same_at_every_fraction(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path, "stories_base", seed) for seed in (0, 1)]
    runs += [fake_run(tmp_path, "stories_era", 0, fraction) for fraction in (0.1, 1.0)]
    one = fake_run(tmp_path, "stories_sgtm", 0, 1.0, 0.2, losses={"groups": {"forget": 0.0}})
    settings = made([*runs, one])
    methods = ["stories_base", "stories_era", "stories_sgtm"]
    (axes,) = by_fraction(settings, methods, ["forget"], [("model", "all")]).axes
    places = [list(container.lines[0].get_xdata()) for container in axes.containers]  # type: ignore[attr-defined]
    assert places == [[0.1, 1.0], [0.1, 1.0], [1.0]]


def test_means_and_intervals_are_those_over_seeds(tmp_path: Path) -> None:
    """The values drawn in the figures equal means computed by hand; a missing stage has no point."""
    runs = [fake_run(tmp_path, name, seed, fraction, 0.5 * (name == "stories_era"))
            for name in ("stories_era", "stories_base") for seed in (0, 1, 3) for fraction in (0.1, 1.0)]  # fmt: skip
    settings = made(runs)
    stages = [("model", "all"), ("model_ablated", "all")]
    methods, groups = ["stories_base", "stories_era"], ["forget"]
    half = interval([1.0, 2.0, 4.0])
    figure = by_fraction(settings, methods, groups, stages)
    panels: list[Any] = figure.axes
    trained, ablated = panels
    assert [len(axes.containers) for axes in (trained, ablated)] == [2, 1]
    for container, offset in ((trained.containers[0], 0.0), (trained.containers[1], 0.5), (ablated.containers[0], 1.5)):
        line, _, (bars,) = container.lines
        assert list(line.get_xdata()) == [0.1, 1.0]
        assert list(line.get_ydata()) == pytest.approx([1 + 4 / 3 + offset] * 2)
        (low, high) = bars.get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(half)
    plt.close(figure)
    figure = by_stage([s for s in settings if s.fraction == 1], methods, groups, stages)
    assert len(figure.axes[0].containers) == 3
    plt.close(figure)


def test_relearning_is_the_mean_over_samples_then_over_seeds(tmp_path: Path) -> None:
    settings = made([fake_run(tmp_path, "stories_era", seed) for seed in (0, 1, 3)])
    figure = language.relearning(settings, ["stories_era"], ["forget"])
    assert figure is not None
    panel: Any = figure.axes[0]
    (line,) = panel.lines
    assert list(line.get_xdata()) == [0, 4] and list(line.get_ydata()) == pytest.approx([3.5 + 4 / 3, 3.1 + 4 / 3])
    (band,) = panel.collections
    spread = band.get_paths()[0].vertices[:, 1]
    assert spread.max() == pytest.approx(3.5 + 4 / 3 + interval([0.0, 1.0, 3.0]))
    plt.close(figure)


@pytest.mark.slow
@pytest.mark.rendered
def test_the_page_has_figures_and_the_last_completions_of_the_first_seed(tmp_path: Path) -> None:
    for name in ("stories_era", "stories_base"):
        for seed in (2, 1):
            for fraction in (0.25, 1.0):
                fake_run(tmp_path, name, seed, fraction)
    compare([str(tmp_path)], out=tmp_path / "out")
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {
        "comparison", "labelled_fraction", "stages_0.25_labelled", "stages_1_labelled", "relearning_0.25_labelled",
        "relearning_1_labelled",
    }  # fmt: skip
    cells = html.split("Completions at the last stage")[1].split("</table>")[0]
    assert " stories_era 1 model_finetuned" in cells and " stories_base 1 model<" in cells
    assert "model_ablated" not in cells and " stories_era 2 " not in cells
    assert cells.count("<tr>") == 2 and EVIL not in html and "&lt;script&gt;" in cells


def test_damaged_completions_are_refused(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "stories_era", 0)
    (run / "completions.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"completions\.json: damaged \(its SHA-256"):
        compare([str(run)], out=tmp_path / "out")
    reseal(run)
    with pytest.raises(UserError, match=r"completions\.json: damaged \(no rows of prompt, group, head, text\)"):
        compare([str(run)], out=tmp_path / "out")
