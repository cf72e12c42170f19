"""The checksum that a manifest has of itself."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "manifest_sha256"  # in the manifest, of everything else in it


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the checksum of everything in it, which tells damage; it is no signature."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return {SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), **content}
