"""Convert configurations of version 0.1, which named kinds instead of components, to the current form.

This lets run folders of that version be read, compared, verified and rerun.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from gradroute.config.doors import TARGET

IMAGES = {
    name: f"gradroute.data.images.torchvision.{kind}"
    for name, kind in (
        ("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST"), ("cifar10", "CIFAR10"),
        ("cifar100", "CIFAR100"),
    )
}  # fmt: skip
FOLDER = "gradroute.data.images.folder.ImageFolder"
COLOURED = ("cifar10", "cifar100")
CLASSES = {"cifar100": 100}
TEXTS = {
    "toy_stories": ("gradroute.data.text.datasets.ToyStories", ("concept", "share")),
    "files": ("gradroute.data.text.datasets.TextFiles", ("files", "field")),
    "hub": ("gradroute.data.text.datasets.HubTexts", ("hub", "split", "test_split", "field")),
}
COMMON = ("stories", "test_stories", "tokenizer", "vocabulary", "length")
ABLATIONS = {
    "zero": "Zero", "mean": "Mean", "resample": "Resample", "reinitialise": "Reinitialise", "remove": "Remove",
}  # fmt: skip


def migrated(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping in the current form; a current or invalid mapping is returned unchanged."""
    found: dict[str, Any] = deepcopy(dict(mapping))
    model, data = found.get("model"), found.get("dataset")
    if not isinstance(model, dict) or not isinstance(data, dict) or TARGET in model or "task" in found:
        return found
    kind, text = _kind(model), data.get("text")
    found["task"] = {TARGET: f"gradroute.tasks.{_task(kind)}"}
    if data.get("augment"):
        found["task"]["augment"] = data["augment"]
    found |= {"measures": [], "plots": [], "tracker": None}
    if isinstance(found.get("losses"), dict):
        found["losses"] = {**found["losses"], "error": None, "penalties": []}
    found["model"] = _model(kind, model)
    found["dataset"] = _texts(data, text) if isinstance(text, dict) else _images(data)
    ablation = found.get("ablation")
    if isinstance(ablation, dict) and ablation.get("kind") in ABLATIONS:
        target = f"gradroute.tasks.ablations.{ABLATIONS[ablation['kind']]}"
        found["ablation"] = {TARGET: target, "region": ablation.get("region")}
    return found


def _kind(model: Mapping[str, Any]) -> str:
    return next((kind for kind in ("transformer", "hf", "resnet") if model.get(kind)), "autoencoder")


def _task(kind: str) -> str:
    tasks = {"autoencoder": "reconstruction.Reconstruction", "resnet": "classification.Classification"}
    return tasks.get(kind, "language.LanguageModelling")


def _model(kind: str, model: Mapping[str, Any]) -> dict[str, Any]:
    if kind == "autoencoder":
        sizes = {key: model[key] for key in ("hidden", "encoding", "decoders") if key in model}
        return {TARGET: "gradroute.models.autoencoder.Autoencoder", **sizes}
    targets = {
        "transformer": "gradroute.models.transformer.build_transformer",
        "resnet": "gradroute.models.resnet.SplitResNet",
        "hf": "gradroute.models.pretrained.HuggingFace",
    }  # fmt: skip
    return {TARGET: targets[kind], **model[kind]}


def _images(data: Mapping[str, Any]) -> dict[str, Any]:
    name = data.get("name", "mnist")
    if data.get("format") == "folder":
        kept = {"root": data.get("root"), "colour": name in COLOURED, "metadata": data.get("metadata")}
        return {TARGET: FOLDER, **kept, "classes": CLASSES.get(name, 10)}
    kept = {key: data[key] for key in ("root", "format", "metadata") if key in data}
    return {TARGET: IMAGES.get(name, IMAGES["mnist"]), **kept}


def _texts(data: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    kind = "toy_stories" if data.get("name") == "toy_stories" else "hub" if text.get("hub") else "files"
    target, own = TEXTS[kind]
    return {TARGET: target, **{key: text[key] for key in (*own, *COMMON) if key in text}}
