"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_atomic(contents: Mapping[Path, bytes]) -> None:
    """Every file whole or none: all are written beside their places and flushed to the disk, then renamed in order.

    Raises OSError naming the file that the disk does not take; what stood there is untouched.
    """
    staged = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, temporary in staged.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in staged.items():
            os.replace(temporary, path)
    except OSError as error:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        reason = f"{path} could not be written and what stood there is untouched: {error.strerror}"
        raise OSError(error.errno, reason) from None


def writable(folder: str | Path) -> None:
    """Raises OSError naming a folder in which no file can be written, before hours are spent on one."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"results cannot be written to {folder}: {error.strerror}") from None
