"""The suite's folders, atomic writing of files, and detection of damaged ones."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from kdcore.errors import Damaged, KdcoreError


def cache() -> Path:
    """``$KDCORE_CACHE`` (default ~/.cache/kdcore): checkpoints, weights and data; never committed."""
    return _home("KDCORE_CACHE", os.environ.get("KDCORE_CACHE") or "~/.cache/kdcore")


def data() -> Path:
    """``$KDCORE_DATA`` (default ``$KDCORE_CACHE/data``): one file per data set, or published files in torchvision's layout."""
    return _home("KDCORE_DATA", os.environ.get("KDCORE_DATA") or cache() / "data")


def _home(variable: str, path: Path | str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~unknown, or a user without a home
        raise KdcoreError(f"the folder '{path}' cannot be used ({error}): set {variable} to a writable folder") from error


def regular(path: Path) -> Path:
    """``path`` itself. Raises OSError for a pipe, socket or device, from which reading could block forever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder raises by itself
        raise OSError(errno.ENXIO, "it is a pipe, a socket or a device, not a file", str(path))
    return path


def write_atomically(path: Path, write: Callable[[str], None]) -> None:
    """Call ``write(temporary)``, then rename the temporary file to ``path``: a reader sees either the old or the new file.

    The first write into a folder removes temporary files of killed processes. Raises KdcoreError if the disk is full or the
    folder is not writable.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _swept:
            _swept.add(path.parent)
            clear_temporaries(path.parent)
        temporary = path.with_name(f".tmp-{os.getpid()}-{HOST}-{secrets.token_hex(4)}{path.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # permissions follow the umask
        write(str(temporary))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C must not leave anything behind either
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise KdcoreError(f"cannot write {path} ({error.strerror or error}): {cure(error)} and run the same command again") from error
        raise


HOST = re.sub(r"\W", "_", platform.node())
_swept: set[Path] = set()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` atomically."""
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))


def clear_temporaries(folder: Path) -> None:
    """Remove temporary files of killed processes from ``folder``; those of other machines once they are a day old."""
    for stray in folder.glob(".tmp-*"):
        own = re.match(rf"\.tmp-(\d+)-{HOST}-", stray.name)
        with contextlib.suppress(OSError):
            if (not _alive(int(own[1]))) if own else time.time() - stray.stat().st_mtime > 86400:
                stray.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        pass
    return True


def trouble(error: OSError) -> str:
    """A sentence about an unexpected error with a file or folder."""
    where = f"'{error.filename}' cannot be used" if error.filename else "a file or the output cannot be read or written"
    return f"{where} ({error.strerror or error}): {cure(error)} and run the same command again"


def cure(error: OSError) -> str:
    """What the user can do about a file or folder that cannot be written or locked."""
    return _CURES.get(error.errno, "correct this")


_CURES = (
    dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable")
    | dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some disk space")
    | dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENXIO), "move away what is in the place of the folder or file"
    )
    | dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit on open files (ulimit -n)")
    | dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL),
        "this file system does not support locks, so put --results and KDCORE_CACHE on a local disk, or mount it with locks,",
    )
    | {errno.ENOENT: "choose a folder that takes files", errno.ENAMETOOLONG: "choose a shorter path", errno.EIO: "check the disk"}
)


def save_tensors(path: Path, tensors: dict, metadata: dict[str, str]) -> None:
    """Write tensors (contiguous, on the CPU) and metadata to a safetensors file, with a digest of both."""
    from safetensors.torch import save

    write_bytes(path, save(tensors, metadata | {"digest": _digest(tensors, metadata)}))


def load_tensors(path: Path, **belongs: str) -> tuple[dict, dict[str, str]]:
    """(tensors, metadata) of a file that ``save_tensors`` wrote.

    belongs: entries that the metadata must have, such as the file's owner. If one of these or the digest is wrong, moves the
    file aside and raises Damaged; raises KdcoreError if the file cannot be opened.
    """
    from safetensors import safe_open

    try:
        regular(path).open("rb").close()
    except OSError as error:
        raise KdcoreError(f"cannot read {path} ({error.strerror}): make it readable and run the same command again") from error
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata.pop("digest") != _digest(tensors, metadata):
            raise ValueError("its contents do not match its digest")
        if wrong := [key for key, value in belongs.items() if metadata.get(key) != value]:
            raise ValueError(f"it belongs to another {wrong[0]}")
    except MemoryError:
        raise
    except Exception as error:  # whatever safetensors or Python raises for a broken header
        words = str(error) if type(error) is ValueError else "it cannot be read, or has no digest"
        raise Damaged(f"{path} is damaged ({words}) and was moved to {set_aside(path).name}") from error
    return tensors, metadata


def set_aside(path: Path) -> Path:
    """Rename a damaged file to NAME.damaged (or .damaged-2, ...), never to be used or deleted. Returns the new path."""
    places = (path.with_name(f"{path.name}.damaged{number}") for number in ("", *(f"-{n}" for n in range(2, 1000))))
    target = next(place for place in places if not place.exists())
    try:
        os.rename(path, target)
    except FileNotFoundError:  # another process moved it first
        pass
    except OSError as error:
        raise KdcoreError(f"{path} is damaged and cannot be moved aside ({error.strerror}): {cure(error)} or delete it") from error
    return target


def _digest(tensors: dict, metadata: dict[str, str]) -> str:
    """sha256 over the tensors' names, dtypes, shapes and bytes, and the metadata."""
    import torch

    heads = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(tensors.items())]
    sha = hashlib.sha256(json.dumps([heads, metadata], sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        sha.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()
