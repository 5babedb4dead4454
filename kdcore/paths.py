"""Where things live, and how a file is written so that a crash never tears it."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from kdcore.errors import KdcoreError


def cache() -> Path:
    """``$KDCORE_CACHE`` (default ~/.cache/kdcore): checkpoints, weights and data, never committed."""
    return Path(os.environ.get("KDCORE_CACHE") or "~/.cache/kdcore").expanduser()


def data() -> Path:
    """``$KDCORE_DATA`` (default ``$KDCORE_CACHE/data``): one safetensors file a data set, or torchvision's layout."""
    return Path(os.environ.get("KDCORE_DATA") or cache() / "data").expanduser()


def write_atomically(path: Path, write: Callable[[str], None]) -> None:
    """Call ``write(temporary)``, then put the temporary file in ``path``'s place: a reader sees the old file or the new.

    Raises KdcoreError when the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except Exception as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        # safetensors wraps an OSError in its own class and keeps only the words
        if isinstance(error, OSError) or "os error" in str(error).lower():
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            cure = "free some disk space" if full else "make the folder writable"
            raise KdcoreError(f"cannot write {path} ({error}): {cure} and run the same command again") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def clear_temporaries(folder: Path) -> None:
    """Remove the temporary files that a killed process left in ``folder``."""
    for stray in folder.glob(".tmp-*"):
        stray.unlink(missing_ok=True)
