"""Run folders made by somebody who means harm, checksums and all: nothing runs, nothing leaves, all ends in a line."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from robust import Tally, reseal

from gradroute.records.seal import sealed

SCRIPT = "<script>alert('x')</script>"
ESCAPE = "\x1b[31m"
PEAK = 1200 * 2**20  # bytes that reading may take: a sound run's data and model do, a declared 10 GB does not
COMMANDS = {"compare", "verify", "load", "page", "scene", "rerun", "resume", "open"}


def sweep(folder: Path, *runs: str) -> None:
    """Write a sweep's list of runs."""
    (folder / "runs.json").write_text(json.dumps({"runs": runs, "failed": []}))


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def edit_manifest(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    change(manifest)
    (run / "manifest.json").write_text(json.dumps(sealed(manifest)))


def edit_config(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def replace(run: Path, name: str, content: bytes | str) -> None:
    (run / name).unlink()
    (run / name).write_bytes(content.encode() if isinstance(content, str) else content)


def link(run: Path, name: str, target: Path) -> None:
    (run / name).unlink()
    (run / name).symlink_to(target)


def pipe(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)


def data_pipe(run: Path) -> None:
    """Metadata from a pipe in the folder."""
    (run / "data").mkdir()
    os.mkfifo(run / "data" / "train.csv")
    edit_config(run, lambda c: c["dataset"].update(metadata=str(run / "data")))


def sparse(run: Path, name: str, size: int) -> None:
    """Make the file as long as `size` without taking that room on the disk."""
    replace(run, name, (run / name).read_bytes()[:4096])
    os.truncate(run / name, size)


def tensors(shape: list[int], size: int, length: int | None = None) -> bytes:
    """A safetensors file whose header declares one tensor of `size` bytes."""
    header = {"model.encoder.linear0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(64)


def arrays(**given: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **given)
    return buffer.getvalue()


def member(header: bytes, name: str = "images.npy") -> bytes:
    """An `.npz` of one array with a header of one's own and next to nothing behind it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        padded = header + b" " * (-(len(header) + 11) % 64) + b"\n"
        archive.writestr(name, b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(64))
    return buffer.getvalue()


def bomb(run: Path) -> None:
    """An archive whose directory says that 3 GiB are in it."""
    packed = bytearray(member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (3221225472,), }"))
    at = packed.index(b"PK\x01\x02")
    packed[at + 24 : at + 28] = (3 * 2**30).to_bytes(4, "little")
    replace(run, "samples.npz", bytes(packed))


def everywhere(run: Path) -> None:
    """Scripts and terminal codes in every text that is shown."""
    evil = SCRIPT + ESCAPE + "[/red]$x^{$"
    for name in ("metrics.csv", "ledger.csv"):
        replace(run, name, (run / name).read_text().replace("digits_0_4", evil.replace("'", "")))
    for name in ("summary.json", "figures.json"):
        replace(run, name, (run / name).read_text().replace("digits_0_4", json.dumps(evil)[1:-1]))
    edit_config(run, lambda config: config.update(name=evil))
    (run / "plots" / f"encoding_{SCRIPT.replace('/', '')}.png").write_bytes(SCRIPT.encode())
    edit_manifest(run, lambda m: m.update(experiment=evil, started=evil, command=[evil], packages={"gradroute": evil}))


def nested(opening: str, closing: str) -> str:
    return opening * 100_000 + closing * 100_000


BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

# what a folder may name to have it called, and the arguments that would then do harm
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "evil": ("evil.group", {}),
    "system": ("os.system", {"command": "touch executed"}),
    "sys_of_ours": ("gradroute.records.run_folder.sys", {}),
    "system_of_ours": ("gradroute.running.exit_status.os.system", {"command": "touch executed"}),
    "path_of_ours": ("gradroute.records.atomic.Path", {}),
    "our_importer": ("gradroute.data.groups.load_predicate", {"path": "evil:group"}),
    "our_finder": ("gradroute.config.targets.locate", {"target": "evil.group", "key": "x"}),
    "our_loader": ("gradroute.load", {"run": "outputs/sweeps/target_evil_model", "run_code": True}),
    "our_runner": ("gradroute.run", {"config_dir": "."}),
}
OTHERS = ("evil", "system")  # of these not even the module may be imported
PLACES = (  # where a configuration takes a component; a list gets one more
    "task", "dataset", "model", "ablation", "tracker", "losses.error", "losses.penalties", "measures", "plots", "steps",
    "finetune",
)  # fmt: skip
INSIDE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {  # arguments of components of ours
    "model.hidden": lambda entry: entry,
    "dataset.root": lambda entry: entry,
    "ablation.region": lambda entry: entry,
    "tracker": lambda entry: {"_target_": "gradroute.running.trackers.Wandb", "project": [entry]},
    "losses.penalties": lambda entry: {"_target_": "gradroute.training.penalties.L1", "region": entry},
    "measures": lambda entry: {"_target_": "gradroute.training.measures.SquaredError", "of": {"deep": [entry]}},
    "plots": lambda entry: {"_target_": "gradroute.reporting.plots_common.encoding", "site": entry},
    "steps": lambda entry: {"_target_": "gradroute.steps.finetune.FineTune", "group": entry, "documents": [4]},
}


def put(config: dict[str, Any], place: str, component: dict[str, Any]) -> None:
    """Put a component where a configuration takes one."""
    *outer, key = place.split(".")
    for name in outer:
        config = config[name]
    config[key] = [*config[key], component] if isinstance(config[key], list) and key != "hidden" else component


def naming(target: str, place: str, inside: bool) -> Callable[[Path], object]:
    """What makes a folder name a target at a place, or in an argument of the component there."""
    path, arguments = TARGETS[target]
    entry = {"_target_": path, **arguments}
    return lambda run: edit_config(run, lambda c: put(c, place, INSIDE[place](entry) if inside else entry))


NAMED = {f"target_{target}_{place}": naming(target, place, inside=False) for target in TARGETS for place in PLACES} | {
    f"inside_{target}_{place}": naming(target, place, inside=True) for target in TARGETS for place in INSIDE
}
TESTED = {  # of these: a stranger's module at every place, others at some (`scripts/robustness.py` takes all)
    f"{kind}_{target}_{place}"
    for kind, places in (("target", PLACES), ("inside", list(INSIDE)))
    for i, target in enumerate(TARGETS)
    for j, place in enumerate(places)
    if target == "evil" or (i + j) % 8 == 0
}

# what is wrong with the folder, and how it is made from a sound one; the checksums are made to agree afterwards
FOLDERS: dict[str, Callable[[Path], object]] = {
    "weights_pickled": lambda run: replace(run, "model.safetensors", pickle.dumps(Payload())),
    "weights_declare_10_gb": lambda run: replace(run, "model.safetensors", tensors([50000, 50000], 10**10)),
    "weights_of_another_shape": lambda run: replace(run, "model.safetensors", tensors([4, 4], 64)),
    "weights_header_of_an_exabyte": lambda run: replace(run, "model.safetensors", tensors([4], 64, 2**60)),
    "weights_sparse": lambda run: sparse(run, "model.safetensors", 2500 * 2**20),
    "weights_pipe": lambda run: pipe(run, "model.safetensors"),
    "weights_linked_away": lambda run: link(run, "model.safetensors", run.parent.parent / "secret"),
    "arrays_pickled": lambda run: replace(run, "samples.npz", arrays(images=np.array([Payload()], dtype=object))),
    "arrays_declare_10_gb": lambda run: replace(
        run, "samples.npz", member(b"{'descr': '<f4', 'fortran_order': False, 'shape': (50000, 50000), }")
    ),
    "arrays_header_of_code": lambda run: replace(
        run, "samples.npz", member(b"__import__('os').system('touch executed')")
    ),
    "arrays_bomb": bomb,
    "arrays_unlike_the_rest": lambda run: replace(run, "samples.npz", arrays(images=np.zeros((2, 3)))),
    "config_applies_code": lambda run: replace(
        run, "config.yaml", "!!python/object/apply:os.system ['touch executed']"
    ),
    "config_target": lambda run: edit_config(
        run, lambda c: c["model"].update(_target_="os.system", command="touch executed")
    ),
    "config_of_targets_only": lambda run: replace(
        run, "config.yaml", "_target_: os.system\n_args_: [touch executed]\n"
    ),
    "config_bomb": lambda run: replace(run, "config.yaml", (run / "config.yaml").read_text() + BILLION),
    "config_nested": lambda run: replace(run, "config.yaml", "name: " + nested("[", "]")),
    "config_reads_the_environment": lambda run: edit_config(run, lambda c: c.update(name="${oc.env:HOME}")),
    "config_writes_away": lambda run: edit_config(run, lambda c: c.update(output_dir=str(run.parent.parent / "away"))),
    "config_name_leads_away": lambda run: edit_config(run, lambda c: c.update(name="../../away")),
    "config_predicate": lambda run: edit_config(
        run, lambda c: c["routing"]["groups"]["digits_0_4"].update(labels=[], predicate="evil:group")
    ),
    "config_huge_model": lambda run: edit_config(run, lambda c: c["model"].update(hidden=[65536] * 8)),
    "config_huge_numbers": lambda run: replace(
        run, "config.yaml", (run / "config.yaml").read_text().replace("seed: 0", "seed: 1" + "0" * 4000)
    ),
    "config_data_pipe": data_pipe,
    "config_sparse": lambda run: sparse(run, "config.yaml", 10**12),
    "config_device": lambda run: link(run, "config.yaml", Path("/dev/zero")),
    "config_list": lambda run: replace(run, "config.yaml", "[1, 2]"),
    "manifest_up": lambda run: edit_manifest(run, lambda m: m["files"].update({"../secret": "0" * 64})),
    "manifest_absolute": lambda run: edit_manifest(run, lambda m: m["files"].update({"/etc/passwd": "0" * 64})),
    "manifest_nested": lambda run: replace(run, "manifest.json", nested('{"a":', "}")),
    "manifest_types": lambda run: edit_manifest(run, lambda m: m.update(files=["config.yaml"], packages="all")),
    "manifest_state": lambda run: edit_manifest(run, lambda m: m.update(state={"finished": True})),
    "figures_huge_shape": lambda run: replace(
        run, "figures.json", json.dumps(json.loads((run / "figures.json").read_text()) | {"shape": [10**9, 10**9]})
    ),
    "figures_list": lambda run: replace(run, "figures.json", "[]"),
    "figures_half_a_surrogate": lambda run: replace(
        run, "figures.json", (run / "figures.json").read_text().replace("digits_0_4", "\\ud800")
    ),
    "summary_nested": lambda run: replace(run, "summary.json", nested('{"headline":[', "]}")),
    "summary_list": lambda run: replace(run, "summary.json", "[]"),
    "summary_types": lambda run: replace(run, "summary.json", '{"headline": [{"head": [], "region": {}, "group": 1}]}'),
    "summary_no_numbers": lambda run: replace(
        run, "summary.json", (run / "summary.json").read_text().replace('"value": 0.', '"value": NaN, "v": 0.')
    ),
    "ledger_of_ages": lambda run: replace(
        run, "ledger.csv", re.sub(r"(?m)^0,\d+,", f"0,{2**52},", (run / "ledger.csv").read_text())
    ),
    "metrics_sparse": lambda run: sparse(run, "metrics.csv", 10**12),
    "metrics_one_cell": lambda run: replace(run, "metrics.csv", (run / "metrics.csv").read_text() + "x" * 10**6),
    "plot_linked_away": lambda run: link(run, "plots/mask.png", run.parent.parent / "secret"),
    "plot_pipe": lambda run: pipe(run, "plots/mask.png"),
    "links_in_a_circle": lambda run: link(run, "metrics.csv", run / "metrics.csv"),
    "sweep_absolute": lambda run: sweep(run, str(run.parent.parent / "private")),
    "sweep_up": lambda run: sweep(run, "../../../private", "../../../../etc"),
    "sweep_types": lambda run: (run / "runs.json").write_text('{"a": [1]}'),
    "texts": everywhere,
    **NAMED,
}  # fmt: skip
HARMLESS = {  # what is left alone by the commands that do not need it; all else is refused by at least one
    "plot_pipe",
    "arrays_unlike_the_rest",  # only drawing would need them
    "summary_no_numbers",
    "ledger_of_ages",
    # nothing that reads a folder draws its plots: the names there are left alone, and the watch sees that they are
    *(name for name in NAMED if name.startswith("inside_") and name.endswith("_plots")),
}


def _faults(name: str, run: Path, ends: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with how the commands ended on one folder."""
    faults = [] if ends.keys() == COMMANDS else ["not every command ran"]
    for command, end in ends.items():
        lines = end["err"].splitlines()
        if end["status"] not in (0, 2) or (end["status"] == 2 and len(lines) != 1):
            faults.append(f"{command}: status {end['status']}: {end['err']:.200}")
        if end["seconds"] > 30:
            faults.append(f"{command}: {end['seconds']} s")
        if ESCAPE in end["out"] + end["err"]:
            faults.append(f"{command}: a terminal code came through")
    for page in [run / "report.html", run.parents[2] / "out" / "comparison.html"]:
        if page.is_file() and not page.is_symlink() and SCRIPT in page.read_text():
            faults.append(f"{page.name}: a script came through")
    if name not in HARMLESS and all(end["status"] == 0 for end in ends.values()):
        faults.append("nothing refused it")
    return faults + _naming_faults(name, ends)


def _naming_faults(name: str, ends: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with how the commands that need the configuration ended on one that names what it may not."""
    kind, _, rest = name.partition("_")
    target = max((t for t in TARGETS if rest.startswith(f"{t}_")), key=len, default="")
    if name not in NAMED or (kind == "inside" and target not in OTHERS):  # these may be unknown arguments first
        return []
    said = f"names code that is not part of gradroute, {TARGETS[target][0]}; " if target in OTHERS else "_target_"
    return [
        f"{command}: {ends[command]['err']:.200}"
        for command in ("verify", "load", "rerun", "resume")
        if ends[command]["status"] != 2 or said not in ends[command]["err"]
    ]


def run(sound: Path, folder: Path, names: Collection[str]) -> Tally:
    """Read these hostile folders, made from the finished run `sound` below `folder`, in one watched process."""
    place, tally = folder / "outputs" / "sweeps", Tally()
    (folder / "outputs" / "secret").mkdir(parents=True)
    shutil.copytree(sound, folder / "private")
    (folder / "evil.py").write_text("import os\nos.system('touch executed')\ngroup = None\n")
    for name in names:
        shutil.copytree(sound, place / name, copy_function=os.link)
        (place / name / "manifest.json").unlink()
        shutil.copy(sound / "manifest.json", place / name)
        (place / name / "config.yaml").unlink()
        shutil.copy(sound / "config.yaml", place / name)
        FOLDERS[name](place / name)
        if not name.startswith("manifest_"):
            reseal(place / name)
    reader = [sys.executable, "-B", str(Path(__file__).parents[1] / "reader.py")]
    runs = [str(place / name) for name in names]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([*reader, *runs], cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for name, path in zip(names, runs, strict=True):
        faults = _faults(name, Path(path), result["found"][path])
        tally.add(name, str(faults) if faults else "correct" if name in HARMLESS else "refused")
    left = {p.name for p in folder.iterdir()} - {"outputs", "private", "evil.py", "out", "__pycache__"}
    if result["noted"] or left or result["peak"] > PEAK:
        tally.wrong.append(f"noted {result['noted']}, left {left}, peak {result['peak'] / 2**20:.0f} MiB")
    return tally


@pytest.mark.slow
def test_hostile_folders_are_refused_and_run_nothing(small: Path, tmp_path: Path) -> None:
    tally = run(small, tmp_path, [name for name in FOLDERS if name not in NAMED or name in TESTED])
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.parametrize("name", ["payload", "arrays"])
def test_the_payloads_would_execute_where_they_are_trusted(name: str, tmp_path: Path) -> None:
    """The reader's watch is worth something only if these do harm elsewhere."""
    content = pickle.dumps(Payload()) if name == "payload" else arrays(images=np.array([Payload()], dtype=object))
    (tmp_path / "file").write_bytes(content)
    code = "import pickle; pickle.load(open('file', 'rb'))"
    if name == "arrays":
        code = "import numpy; numpy.load('file', allow_pickle=True)['images']"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "executed").is_file()
