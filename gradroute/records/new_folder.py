"""Folders that belong to one process: two that ask for one name at the same time get different ones."""

from pathlib import Path

from gradroute.errors import UserError

MOST = 999


def new_folder(base: Path) -> Path:
    """Create and return a folder that did not exist: `base`, else `base-2`, `base-3`, …

    Raises: UserError if there are too many; OSError if none can be created.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, MOST + 1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise UserError(f"{base}: {MOST} folders of this name exist; set output_dir= to another folder")
