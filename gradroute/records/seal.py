"""A manifest's checksum of its own content."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "manifest_sha256"  # the manifest's key for the checksum of all its other entries


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with a checksum of its content, which reveals damage but is not a signature."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return {SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), **content}
