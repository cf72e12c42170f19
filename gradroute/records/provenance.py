"""Where a run came from: versions, commit, hardware."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = (
    "gradroute", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "pandas", "scipy", "matplotlib",
    "safetensors", "tokenizers", "transformers",
)  # fmt: skip
SETTINGS = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")  # environment variables that matter


@cache  # each look-up reads files, for every run of a sweep
def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache  # the code that a process runs is that of its start; git takes as long as all else that a manifest says
def git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, or None if it is installed."""
    home = Path(__file__).parents[2]
    if not (home / ".git").exists():
        return None
    command = ["git", "-C", str(home), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def software() -> dict[str, Any]:
    """Return the versions of Python and of the packages that are installed, and the commit of a checkout."""
    versions = {name: version(name) for name in PACKAGES}
    packages = {name: found for name, found in versions.items() if found is not None}
    return {"packages": packages, "python": platform.python_version(), "git_commit": git_commit()}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """Return the processor's name and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {"processor": name, "cores": cores()}
