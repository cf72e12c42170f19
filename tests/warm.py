"""Import what the commands import, read MNIST, and compose: the fork server does so once for all of its forks."""

import importlib
from importlib.util import find_spec

import composing
import mnist_once
import torch

from gradroute.config.compose import configuration
from gradroute.data.images.torchvision import MNIST
from gradroute.records import provenance

MODULES = (
    "gradroute.commands.compare", "gradroute.commands.run", "gradroute.commands.search", "gradroute.commands.tokens",
    "gradroute.commands.verify", "gradroute.comparison.language", "gradroute.comparison.plots",
    "gradroute.reporting.plots", "gradroute.reporting.plots_classification", "gradroute.reporting.plots_images",
    "gradroute.reporting.plots_language", "gradroute.running.runner", "gradroute.running.verify",
    "gradroute.search.finals", "gradroute.search.page", "gradroute.search.study", "gradroute.tasks.classification",
    "gradroute.tasks.language", "gradroute.tasks.reconstruction", "gradroute.models.resnet", "hydra", "jinja2",
    "pandas", "rich.live", "rich.table", "torch._dynamo",
)  # fmt: skip

composing.quick()
MNIST.tensors = mnist_once.tensors  # type: ignore[assignment,method-assign]
for name in MODULES:
    importlib.import_module(name)
for name in ("transformers", "peft"):  # of gradroute[hf]
    if find_spec(name):
        importlib.import_module(name)
threads = torch.get_num_threads()
torch.set_num_threads(1)  # a fork has no part in its parent's pool of threads, and waits for it
MNIST().tensors()
torch.set_num_threads(threads)
provenance.git_commit()
for experiment in ("mnist_split", "class_split", "stories_era", "oversight/routing"):
    configuration([f"experiment={experiment}", "trainer=smoke"])
