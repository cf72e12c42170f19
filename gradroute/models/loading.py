"""Load a causal language model of `transformers` from the hub, a folder, a GGUF file or a config object."""

from pathlib import Path
from typing import Any

from gradroute.data.hub import gguf_of, package, quiet, reason
from gradroute.errors import UserError
from gradroute.models.causal_lm import CausalLM


def located(source: str) -> tuple[str, dict[str, Any]]:
    """Return the name or folder that `transformers` reads a model from, and its options. Raises: UserError."""
    if (gguf := gguf_of(source)) is not None:
        for needed in ("gguf", "accelerate"):
            package(needed, f"model '{source}'")
        return gguf[0], {"gguf_file": gguf[1]}
    place = Path(source).expanduser()
    return (str(place) if place.is_dir() else source), {}


def load(source: Any, config: Any = None) -> CausalLM:
    """Load a pretrained model, or make one with random weights from a config object.

    It is in float32, and in evaluation mode, so dropout is off. No code that comes with a model is run.

    Args:
        source: a name on the hub, a local folder, a GGUF file, or a config object.
        config: a config object for a pretrained model, in place of its own.

    Raises: UserError if the package is missing, the model cannot be loaded, weights of it are missing, or the config
        is not that of a causal model.
    """
    named = isinstance(source, str | Path)
    what = f"model '{source}'" if named else f"model from a {type(source).__name__}"
    make = package("transformers", what).AutoModelForCausalLM
    try:
        if named:
            name, options = located(str(source))
            options |= {} if config is None or "gguf_file" in options else {"config": config}
            options["ignore_mismatched_sizes"] = True  # they are refused below, in one line
            with quiet():
                model, found = make.from_pretrained(name, trust_remote_code=False, output_loading_info=True, **options)
        else:
            model, found = make.from_config(source, trust_remote_code=False), {}
    except Exception as error:  # any error of the hub, the network or the files
        raise UserError(f"{what}: cannot be loaded as a causal language model [{reason(error)}]") from None
    if missing := sorted(found.get("missing_keys", ())):  # would be drawn at random
        raise UserError(f"{what}: its weights lack {missing[0]}, which its configuration requires")
    for entry in sorted(found.get("mismatched_keys", ())):
        if isinstance(entry, str):  # of transformers 4.53
            fault = f"its {entry} has another shape than its configuration requires"
        else:
            key, stored, wanted = entry
            fault = f"its {key} has shape {tuple(stored)}, and its configuration requires {tuple(wanted)}"
        raise UserError(f"{what}: {fault}; choose another model, or mend its config.json")
    return CausalLM(model).float().eval()
