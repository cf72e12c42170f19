"""`gradroute-run`: compose the configuration with Hydra, check it, run it; say mistakes in one line."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from gradroute.errors import UserError


def conf_dir() -> Path:
    """The folder of configurations: inside an installed package, else the checkout's."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def _rerun(run: Path, overrides: Sequence[str]) -> None:
    """Repeat a run from its folder, with `key=value` changes."""
    from omegaconf import OmegaConf

    from gradroute.config import from_mapping, to_mapping
    from gradroute.records import read_config
    from gradroute.runner import execute

    for override in overrides:
        if "=" not in override or override[0] in "+~-":
            raise UserError(f"{override}: beside rerun=RUN only key=value can be given, such as seed=1")
    source = OmegaConf.create(to_mapping(read_config(run)))
    OmegaConf.set_struct(source, True)
    for override in overrides:
        key, _, value = override.partition("=")
        OmegaConf.update(source, key, OmegaConf.from_dotlist([f"value={value}"]).value, force_add=True)
    execute(from_mapping(source))


def _hydra_run() -> None:
    import hydra
    from omegaconf import DictConfig

    @hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="config")
    def job(composed: DictConfig) -> None:
        from gradroute.config import from_mapping

        config = from_mapping(composed)
        from gradroute.runner import execute  # only now, so that --help and mistakes are quick

        execute(config)

    job()


def _one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages carry their cause in the lines below the first; keep what says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error.__cause__ is not None and "Could not override" in str(error):
        lines += [line.strip() for line in str(error.__cause__).splitlines()[:1]]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "To append"))]
    return " ".join(dict.fromkeys(kept)) or type(error).__name__


def _suggest(message: str) -> str:
    """Add the nearest valid key to Hydra's report of an unknown one."""
    import difflib
    import re
    from dataclasses import fields

    from gradroute.config import Config

    found = re.search(r"Could not override '([^']+)'", message)
    if not found:
        return message
    valid: list[str] = []
    for entry in fields(Config):
        valid.append(entry.name)
        nested = getattr(entry.default_factory, "__dataclass_fields__", {})
        valid += [f"{entry.name}.{name}" for name in nested]
    near = difflib.get_close_matches(found[1], valid, n=3, cutoff=0.5)
    return f"unknown key '{found[1]}'; " + (f"did you mean {' or '.join(near)}?" if near else "see --cfg job")


def guarded(action: Callable[[], None]) -> int:
    """Run a command; returns its exit status: 0 done, 2 the user's mistake, 1 failure, 130 or 143 interrupted.

    A traceback is shown only with `HYDRA_FULL_ERROR=1`.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand errors to us instead of printing them
    try:
        action()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if wants_traceback:
            raise
        mistake = isinstance(error, UserError | HydraException | OmegaConfBaseException)
        print(f"error: {_suggest(_one_line(error))}", file=sys.stderr)
        if not mistake:
            print("(the traceback is shown with HYDRA_FULL_ERROR=1)", file=sys.stderr)
        return 2 if mistake else 1
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if wants_traceback:
            os.environ["HYDRA_FULL_ERROR"] = "1"


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point of `gradroute-run`."""
    signal.signal(signal.SIGTERM, _terminate)
    reruns = [a for a in sys.argv[1:] if a.startswith("rerun=")]
    if reruns:
        others = [a for a in sys.argv[1:] if a != reruns[0]]
        status = guarded(lambda: _rerun(Path(reruns[0].partition("=")[2]), others))
    else:
        status = guarded(_hydra_run)
    sys.exit(status)


if __name__ == "__main__":
    main()
