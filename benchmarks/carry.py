"""Image data made small enough to carry to a machine without a network: ``python -m benchmarks.carry pack FOLDER cifar10 mnist``.

    pack FOLDER NAME ...     write parts of at most --mib each, FOLDER/part-1.bin, ...
    unpack FOLDER DATA       put the parts together; each set becomes DATA/NAME.safetensors

Each pixel is predicted from those above and to its left (the median predictor of JPEG-LS); red and blue are first replaced by their
difference from green. The residuals are Huffman-coded, and CIFAR-10 then takes half of its 176 MiB. The coding is lossless: unpacked
data have the fingerprint that each load checks.
"""

import argparse
import json
import re
import sys
import zlib
from pathlib import Path

import numpy as np

from kdcore import data, paths
from kdcore.data.images import ARRAYS, CLASSES

MIB = 48


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.carry", description="Pack image data in parts, to carry to another machine."
    )
    parser.add_argument("do", choices=("pack", "unpack"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME or DATA")
    parser.add_argument("--mib", type=float, default=MIB, help="largest part (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.do == "unpack":
        for path in unpack(options.folder, Path(options.names[0])):
            print(path)
        return 0
    for path in pack(options.folder, options.names, round(options.mib * 2**20)):
        print(path, f"{path.stat().st_size / 2**20:.1f} MiB")
    return 0


def pack(folder: Path, names: list[str], size: int) -> list[Path]:
    """Write the parts, and remove those that an earlier call left in the folder."""
    head, body = {}, []
    for name in names:
        images = data.load(name)
        for key in ARRAYS:
            array = getattr(images, key).numpy()
            coder = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
            raw = residual(array) if array.ndim == 4 else array.astype(np.uint8)
            body.append(coder.compress(np.ascontiguousarray(raw).tobytes()) + coder.flush())
            head.setdefault(name, {})[key] = [list(array.shape), len(body[-1])]
    line = json.dumps(head).encode() + b"\n"
    whole = line + b"".join(body)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-*.bin"):
        old.unlink()
    parts = [folder / f"part-{number}.bin" for number in range(1, -(-len(whole) // size) + 1)]
    for number, part in enumerate(parts):
        part.write_bytes(whole[number * size : (number + 1) * size])
    return parts


def unpack(folder: Path, target: Path) -> list[Path]:
    """Put a folder's parts together into files that ``data.load`` reads."""
    from safetensors.numpy import save_file

    parts = sorted(folder.glob("part-*.bin"), key=lambda path: int(re.findall(r"\d+", path.stem)[0]))
    line, _, body = b"".join(part.read_bytes() for part in parts).partition(b"\n")
    written, at = [], 0
    for name, arrays in json.loads(line).items():
        found = {}
        for key, (shape, length) in arrays.items():
            values = np.frombuffer(zlib.decompress(body[at : at + length]), np.uint8)
            found[key] = restored(values.reshape(shape[1], shape[0], *shape[2:])) if len(shape) == 4 else values.astype(np.int64)
            at += length
        path = target / f"{name}.safetensors"
        paths.write_atomically(path, lambda temporary, found=found: save_file(found, temporary, {"classes": json.dumps(CLASSES[name])}))  # noqa: B023 (called at once)
        written.append(path)
    return written


def residual(images: np.ndarray) -> np.ndarray:
    """The residuals of the prediction, modulo 256, channel by channel: uint8 [N, C, H, W] -> [C, N, H, W]."""
    x = images.astype(np.int16).transpose(1, 0, 2, 3)
    if len(x) == 3:
        x[[0, 2]] -= x[1]
    x = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 0)))
    return (x[..., 1:, 1:] - _predicted(x[..., 1:, :-1], x[..., :-1, 1:], x[..., :-1, :-1])).astype(np.uint8)


def restored(found: np.ndarray) -> np.ndarray:
    """The images of a ``residual``, all at once, pixel by pixel."""
    channels, count, height, width = found.shape
    x = np.zeros((height + 1, width + 1, channels, count), np.int16)
    found = found.transpose(2, 3, 0, 1).astype(np.int16)
    for i in range(height):
        for j in range(width):
            x[i + 1, j + 1] = found[i, j] + _predicted(x[i + 1, j], x[i, j + 1], x[i, j])
            if channels == 3:
                green = x[i + 1, j + 1, 1] & 255
                x[i + 1, j + 1] = ((x[i + 1, j + 1] + [[1], [0], [1]] * green) & 255) - [[1], [0], [1]] * green
            else:
                x[i + 1, j + 1] &= 255
    x = x[1:, 1:].transpose(2, 3, 0, 1)
    if channels == 3:
        x[[0, 2]] += x[1]
    return np.ascontiguousarray(x.transpose(1, 0, 2, 3).astype(np.uint8))


def _predicted(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    low, high = np.minimum(left, above), np.maximum(left, above)
    return np.where(corner >= high, low, np.where(corner <= low, high, left + above - corner))


if __name__ == "__main__":
    sys.exit(main())
