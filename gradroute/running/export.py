"""Write what is handed out of a finished run: a model without the parts that a profile leaves out, and a card.

A *part* is an adapter, a module beside the MLPs, or a region of added units or heads. What is in no such region is the
core, which every profile has.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.models import exported
from gradroute.models.adapters import adapters_in, drop, merged, save_adapter
from gradroute.models.beside import CORE, beside, drop_beside, parse_profile
from gradroute.models.causal_lm import CausalLM
from gradroute.models.outlines import meta
from gradroute.models.transformer import Transformer
from gradroute.records import run_reader
from gradroute.records.atomic import sha256_of
from gradroute.records.metrics import final_rows
from gradroute.records.tables import read_ledger, read_metrics
from gradroute.routing import Router
from gradroute.routing.ablation import remove
from gradroute.tasks.loading import load
from gradroute.tasks.parts import routers
from gradroute.training.weights import own_tensors

ADDED = ("added", "added_heads")
QUANTISED = "quantised.safetensors"  # not the name that transformers looks for: it would draw what it does not find
TOKENIZER, AUDIT, CARD = "tokenizer.json", "audit.json", "README.md"


@dataclass(frozen=True)
class Order:
    """What to export.

    merge: add the adapters to the weights. quantize: bits of every matrix, 8 or 4; None is float32. licence: for the
    card. attack: measure whether rounding brings back what was left out, for the card.
    """

    profile: str
    to: Path
    merge: bool = False
    quantize: int | None = None
    licence: str = "not stated"
    attack: bool = False


def parts_of(config: Config) -> list[str]:
    """Return the regions that a profile can leave out."""
    regions = config.routing.regions
    return [name for name, r in regions.items() if r.adapter or r.module or r.part in ADDED]


def export(run: Path, order: Order, run_code: bool = False) -> None:
    """Write the folder `order.to`.

    Raises: UserError if the run is not finished or kept no weights, a part is not known, the folder exists, or the
        model is of a kind that cannot be written.
    """
    manifest = run_reader.read_manifest(run)
    if manifest["state"] != "finished":
        raise UserError(f"{run}: the run is not finished (state: {run_reader.state(run, manifest)})")
    if order.to.exists():
        raise UserError(f"--to {order.to}: exists already; name a new folder")
    config = run_reader.read_config(run, manifest, run_code, consent="--run-code")
    known = [name for name in parts_of(config) if name != CORE]
    if not known:
        raise UserError(f"{run}: no region of it can be left out; it needs an adapter, a module or added units")
    kept = parse_profile(order.profile, known, "--profile")
    model = without(load(run, run_code).model, config, [name for name in known if name not in kept])
    if order.merge and not adapters_in(model):
        raise UserError("--merge: the profile has no adapters; leave it out")
    model = merged(model) if order.merge else model
    attacked = attack(run, config, model, order) if order.attack else []
    half = order.to.with_name(f".{order.to.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        write_model(model, half, order.quantize)
        for name in (TOKENIZER, AUDIT):
            if name in manifest["files"]:
                (half / name).write_bytes(run_reader.read_file(run, name, manifest))
        (half / CARD).write_text(card(run, manifest, config, order, kept, attacked, half))
        half.rename(order.to)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def attack(run: Path, config: Config, model: nn.Module, order: Order) -> list[str]:
    """Return what rounding does to each group's test loss, as lines of the card.

    Raises: UserError without `quantize`, or for adapters that are written beside the core and not rounded.
    """
    if order.quantize is None:
        raise UserError("--attack: rounds as --quantize does; give --quantize 8 or 4")
    if adapters_in(model):
        raise UserError("--attack: adapters are not rounded; add them to the weights with --merge")
    from gradroute.audit.rounding import group_losses
    from gradroute.tasks.base import create

    config.trainer.device = "cpu"
    before, after = group_losses(create(config, run=run), model, order.quantize)
    lines = [f"| {group} | {before[group]:.4f} | {after[group]:.4f} |" for group in before]
    title = f"Test loss by group, in nats per token. A loss that falls in {order.quantize} bits would be brought back."
    return ["", "## Quantisation attack", "", title, "",
            f"| group | float32 | {order.quantize} bits |", "|---|---|---|", *lines]  # fmt: skip


def without(model: nn.Module, config: Config, gone: list[str]) -> nn.Module:
    """Return the model without regions: adapters and modules deleted in place, added units removed from a copy."""
    regions = config.routing.regions
    for name in gone:
        region = regions[name]
        if region.adapter is not None:
            drop(model, region.adapter)
        elif region.module is not None:
            drop_beside(model, region.module)
    widened = [name for name in gone if regions[name].part in ADDED]
    if widened:
        example = torch.arange(8)[None]
        router, _ = routers(model, config.routing, list(config.routing.groups), example)
        _require_apart(router, [name for name in parts_of(config) if regions[name].part in ADDED])
        for name in widened:
            with remove(name, router, example).applied(model) as smaller:
                model = smaller
    return model


def _require_apart(router: Router, names: list[str]) -> None:
    """Raise UserError for parts of units at one site, of which removing one would move the other's."""
    owner: dict[str, str] = {}
    for name in names:
        for site in router.regions[name].sites:
            if owner.setdefault(site.name, name) != name:
                fault = f"'{owner[site.name]}' and '{name}' are both units of {site.name}"
                raise UserError(f"--profile: {fault}; parts must not overlap or share a site")


def write_model(model: nn.Module, folder: Path, bits: int | None) -> None:
    """Write a model's files: the core, and each adapter in a folder of its own. Raises: UserError for other kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in adapters_in(model):
        save_adapter(model, name, folder / "adapters" / name)
    names = adapters_in(model)
    for name in names:
        drop(model, name)
    plain = merged(model) if names else model
    if isinstance(plain, CausalLM):
        _require_plain(plain)
        if bits is None:
            plain.model.save_pretrained(folder)
            return
        plain.model.config.save_pretrained(folder)
        _write_own(plain.model, folder, QUANTISED, bits)
    elif isinstance(plain, Transformer):
        _write_own(plain, folder, "model.safetensors", bits)
        (folder / "config.json").write_text(json.dumps(settings_of(plain), indent=2) + "\n")
    else:
        raise UserError(f"a {type(plain).__name__} cannot be exported; only language models of ours and Hugging Face's")


def _write_own(model: nn.Module, folder: Path, file: str, bits: int | None) -> None:
    """Write weights, matrices in fewer bits if asked, and the code that reads them."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own_tensors(model).items()}
    for name in [name for name, tensor in tensors.items() if bits is not None and tensor.dim() == 2]:
        parts = exported.quantised(tensors.pop(name).float(), bits or 8)
        tensors |= {f"{name}.{kind}": part.contiguous() for kind, part in parts.items()}
    save_file(tensors, folder / file, metadata={"format": "pt"})
    shutil.copyfile(Path(exported.__file__), folder / "model.py")


def _require_plain(model: CausalLM) -> None:
    """Raise UserError unless `transformers` would build the model from its configuration; not with added units."""
    with meta():
        expected = type(model.model)(model.model.config).state_dict()
    for name, tensor in model.model.state_dict().items():
        if name not in expected or expected[name].shape != tensor.shape:
            raise UserError(
                f"the profile's {name} is not as transformers builds it; leave out the regions of added units"
            )


def settings_of(model: Transformer) -> dict[str, Any]:
    """Return the sizes from which the exported code builds the model; layers can differ."""
    config = model.config
    head = config.width // config.heads
    common = ("vocabulary", "width", "context", "mlp", "positions", "norm", "tied", "bias")
    blocks: list[Any] = list(model.blocks)
    found = {name: getattr(config, name) for name in common} | {"head_width": head}
    found |= {"units": [block.mlp.up.out_features for block in blocks]}
    found |= {"heads": [block.attn.query.out_features // head for block in blocks]}
    return found | {"modules": {n: next(iter(m.values())).up.out_features for n, m in beside(model).items()}}


def card(
    run: Path, manifest: Mapping[str, Any], config: Config, order: Order, kept: tuple[str, ...], attacked: list[str],
    folder: Path,
) -> str:  # fmt: skip
    """Return the card: what the model was trained on, what was left out, what was measured, and checksums."""
    gone = [name for name in parts_of(config) if name not in kept]
    seen: dict[str, float] = {}
    for row in read_ledger(run, manifest) if config.ledger.enabled else ():
        if row["region"] == next(iter(config.routing.regions)) and row["points"]:
            seen[row["group"]] = seen.get(row["group"], 0) + row["points"]
    lines = [f"# {config.name}, profile {'+'.join((CORE, *kept))}", "",
             f"Exported from the run `{run.name}` (gradroute {manifest['packages'].get('gradroute', '?')}, seed "
             f"{config.seed}).", f"Licence: {order.licence}.", "", "## Trained on", "",
             f"Data: `{config.dataset.get('_target_')}`, SHA-256 `{manifest.get('dataset_sha256')}`.", "",
             "| group | tokens seen in training |", "|---|---|"]  # fmt: skip
    lines += [f"| {group} | {points:.0f} |" for group, points in seen.items()]
    lines += ["", "## Left out", "", ", ".join(gone) or "nothing", ""]
    lines += ["Parameters of these regions are not in any file here."] if gone else []
    if order.merge:
        lines += ["The adapters are added to the weights, which rounds: logits are close to the profile's, not equal."]
    if order.quantize:
        lines += [
            f"Matrices are in {order.quantize} bits, with a scale for each row; the numbers below are of float32. "
            "`load()` in `model.py` returns the model."
        ]
    lines += ["", "## Measured in the run", "", "| head | region | group | metric | value |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['head']} | {row['region']} | {row['group']} | {row['metric']} | {row['value']:.4g} |"
        for row in final_rows(read_metrics(run, manifest))
    ]
    lines += attacked
    audited = (folder / AUDIT).exists()
    lines += ["", "## Audit", "", f"See {AUDIT}." if audited else "The run has no audit.", "", "## Files", ""]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines += [f"- `{path.relative_to(folder).as_posix()}` SHA-256 `{sha256_of(path)}`" for path in files]
    return "\n".join(lines) + "\n"
