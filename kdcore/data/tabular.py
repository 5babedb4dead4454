"""Tabular data sets: eight from the UCI repository, Indian Pines, and three that come with scikit-learn.

A data set is one file, ``$KDCORE_DATA/NAME.csv`` (``$KDCORE_CACHE/data`` by default), written once from its published file
in ``$KDCORE_DATA/uci`` if that exists, else from OpenML or the file's public address. Its contents are canonical: the same
cases give the same bytes, whatever their source and order. Every load compares them with the fingerprint pinned below.
"""

import csv
import gzip
import hashlib
import http.client
import math
import urllib.request
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from kdcore import paths
from kdcore.errors import DataMissing, KdcoreError

# sha256 of the canonical CSV: identifies the data set, part of every trial's id.
FINGERPRINTS = {
    "breast_cancer": "e8cc328adca33b259db99fbc5f47122cce78967ceb6385ebaf80394ce56ddc7e",
    "ionosphere": "47df61e58e86bd5c1639f1f58bcb93c2bb57ebab635be8c1be7875edf3a8065b",
    "glass": "a61b661fc560e9bb1200fba2e198451d5a81968551f57b75991ffd1654cdf9c5",
    "soybean": "045b873ad40c57928576bb1656643dbc8f72db440f325175dde65dde51819120",
    "sonar": "ef8cd8816c194ebfe98df31d3a83009c6c7e987889178db07d167c46c6643ef7",
    "adult": "68cf11bfec65c2ed250fc1d83717311f25da0bf850a423a4ca3ca9f9d5c80324",
    "letter": "094d95f6f53dac79e8ee39a954fbeef17be3d77b1a1e28a0e6ebe14872f0617c",
    "covtype": "49030f5e5edc00ac61dccb2307354d7f94c36319245033dcec60291570226ff2",
    "indian_pines": "510d1f7719a2f56a03b92eff5944bfcd440e3363d256e3cb2722c4b70b017057",
    "breast_cancer_diagnostic": "f9502a00f14c624b85d339e78eb4f9ff8ca65ceef718942272d8bddeca538609",
    "wine": "f1e0a445c247b827e0391c201c17594c9a8aa4676a618346ab94a4226b162406",
    "iris": "e7f2606770d5c33243a79356926721f8e073cab242bb0a6e1601f123a4a10d9f",
}
CYTOLOGY = (
    "clump thickness", "cell size", "cell shape", "adhesion", "epithelial cell size", "bare nuclei", "chromatin", "nucleoli", "mitoses",
)  # fmt: skip
GLASS = {
    "1": "build wind float",
    "2": "build wind non-float",
    "3": "vehic wind float",
    "5": "containers",
    "6": "tableware",
    "7": "headlamps",
}
SOYBEAN = {
    "alternarialeaf-spot": 91, "frog-eye-leaf-spot": 91, "brown-spot": 92, "phytophthora-rot": 88, "anthracnose": 44, "brown-stem-rot": 44,
    "bacterial-blight": 20, "bacterial-pustule": 20, "charcoal-rot": 20, "diaporthe-stem-canker": 20, "downy-mildew": 20,
    "phyllosticta-leaf-spot": 20, "powdery-mildew": 20, "purple-seed-stain": 20, "rhizoctonia-root-rot": 20, "2-4-d-injury": 16,
    "diaporthe-pod-&-stem-blight": 15, "cyst-nematode": 14, "herbicide-injury": 8,
}  # fmt: skip
MISSING = "?"


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and what it must contain.

    file: its name in ``uci``: CSV, ARFF or MATLAB. openml: its number at OpenML; or url: the file's address (labels_url: that of
    the classes' file, for MATLAB's format). counts: number of cases of each class. variables: their names, for files without
    them. numbered: the first column is a case number. label_first: the first column is the class. words: the class names
    for the file's codes. nominal: the variables that are nominal (True: all). filled: missing nominal values become the most
    frequent one. every: keep only every n-th line.
    """

    file: str
    counts: dict[str, int]
    openml: int | None = None
    url: str | None = None
    labels_url: str | None = None
    variables: tuple[str, ...] | None = None
    numbered: bool = False
    label_first: bool = False
    words: dict[str, str] | None = None
    nominal: bool | tuple[str, ...] = False
    filled: bool = False
    every: int = 1

    def is_nominal(self, variable: str) -> bool:
        return self.nominal if isinstance(self.nominal, bool) else variable in self.nominal


LETTERS = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (789, 766, 736, 805, 768, 775, 773, 734, 755, 747, 739, 761, 792, 783, 753, 803, 783, 758, 748, 796, 813, 764, 752, 787, 786, 734),
        strict=True,
    )
)
PINES = {
    "alfalfa": 46, "corn no till": 1428, "corn min till": 830, "corn": 237, "grass pasture": 483, "grass trees": 730,
    "grass pasture mowed": 28, "hay windrowed": 478, "oats": 20, "soybean no till": 972, "soybean min till": 2455, "soybean clean": 593,
    "wheat": 205, "woods": 1265, "buildings grass trees drives": 386, "stone steel towers": 93,
}  # fmt: skip
COVERS = dict(
    zip(
        ("spruce/fir", "lodgepole pine", "ponderosa pine", "cottonwood/willow", "aspen", "douglas-fir", "krummholz"),
        (21197, 28308, 3578, 266, 958, 1752, 2043),
        strict=True,
    )
)  # of every tenth case
# 44 binary columns, two of them 1 in each case: one of 4 areas, one of 40 soil types
AREAS = (*(f"wilderness area {i}" for i in range(1, 5)), *(f"soil type {i:02d}" for i in range(1, 41)))
UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
EHU = "http://www.ehu.eus/ccwintco/uploads"

SOURCES = {
    "breast_cancer": Source(
        "breast-cancer-wisconsin.csv", {"benign": 458, "malignant": 241}, 15,
        variables=CYTOLOGY, numbered=True, words={"2": "benign", "4": "malignant"},
    ),
    "ionosphere": Source("ionosphere.csv", {"b": 126, "g": 225}, 59, variables=tuple(f"a{i:02d}" for i in range(1, 35))),
    "glass": Source(
        "glass.csv", dict(zip(GLASS.values(), (70, 76, 17, 13, 9, 29), strict=True)), 41,
        variables=("RI", "Na", "Mg", "Al", "Si", "K", "Ca", "Ba", "Fe"), numbered=True, words=GLASS,
    ),
    "soybean": Source("soybean.arff", SOYBEAN, 42, nominal=True, filled=True),
    "sonar": Source(
        "sonar.csv", {"Mine": 111, "Rock": 97}, 40,
        variables=tuple(f"band {i:02d}" for i in range(1, 61)), words={"M": "Mine", "R": "Rock"},
    ),
    # the training part, which every copy has; UCI's other 16,281 cases are in a separate file
    "adult": Source(
        "adult.csv", {"<=50K": 24720, ">50K": 7841}, url=f"{UCI}/adult/adult.data",
        variables=("age", "workclass", "final weight", "education", "years of education", "marital status", "occupation", "relationship",
                   "race", "sex", "capital gain", "capital loss", "hours per week", "native country"),
        nominal=("workclass", "education", "marital status", "occupation", "relationship", "race", "sex", "native country"),
    ),
    "letter": Source(
        "letter-recognition.csv", LETTERS, url=f"{UCI}/letter-recognition/letter-recognition.data",
        variables=("x-box", "y-box", "width", "high", "onpix", "x-bar", "y-bar", "x2bar", "y2bar", "xybar", "x2ybr", "xy2br", "x-ege",
                   "xegvy", "y-ege", "yegvx"),
        label_first=True,
    ),
    # a tenth of the 581,012 cases: a split takes only 30,000 at random, and the whole is 75 MB of text
    "covtype": Source(
        "covtype.csv", COVERS, url=f"{UCI}/covtype/covtype.data.gz",
        variables=("elevation", "aspect", "slope", "to water", "above water", "to roads", "shade 9 h", "shade 12 h", "shade 15 h",
                   "to fire points", *AREAS),
        nominal=AREAS, every=10,
        words={str(i): name for i, name in enumerate(COVERS, 1)},
    ),
    "indian_pines": Source(
        "Indian_pines_corrected.mat", PINES, url=f"{EHU}/6/67/Indian_pines_corrected.mat", labels_url=f"{EHU}/c/c4/Indian_pines_gt.mat",
        variables=tuple(f"band {i:03d}" for i in range(1, 201)), words={str(i): name for i, name in enumerate(PINES, 1)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Tabular:
    """A tabular data set: values float64 [N, V], labels int64 [N].

    A nominal value is the index of its word in levels, a missing value is nan. variables: names of the variables. levels: the
    words of each variable, () if it is numeric. classes: names of the classes.
    """

    name: str
    values: np.ndarray
    labels: np.ndarray
    variables: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """A data set as numbers that a decision tree can split on: x float32 [N, columns], missing numbers nan.

    A numeric variable is one column; a nominal one is one-hot, with one column per word (a variable with two words and no
    missing values has a single column); a missing nominal value is 0 in all of them. variable [columns]: index of the
    variable; words: the column's word, None if it is numeric; names: names of the variables.
    """

    x: np.ndarray
    variable: np.ndarray
    words: tuple[str | None, ...]
    names: tuple[str, ...]

    def filled(self, train: np.ndarray) -> np.ndarray:
        """A contiguous copy of x with missing numbers set to the median over the training cases ``train`` (case numbers)."""
        missing = np.isnan(self.x)
        medians = np.nanmedian(self.x[train][:, missing.any(0)], axis=0)
        x = self.x.copy()
        for column, median in zip(np.flatnonzero(missing.any(0)), medians, strict=True):
            x[missing[:, column], column] = median
        return x

    def conditions(self, column: int, threshold: float) -> tuple[str, str]:
        """The conditions for a case to go left, and right, at a split."""
        name, word = self.names[self.variable[column]], self.words[column]
        if word is None:
            return f"{name} \u2264 {threshold:.4g}", f"{name} > {threshold:.4g}"
        return f"{name} \u2260 {word}", f"{name} = {word}"


def columns(table: Tabular) -> Columns:
    """Turn a data set into columns, in the order of its variables."""
    made = []
    for variable, levels in enumerate(table.levels):
        values = table.values[:, variable]
        if not levels:
            made.append((values, variable, None))
            continue
        shown = range(1, 2) if len(levels) == 2 and not np.isnan(values).any() else range(len(levels))
        made += [(values == level, variable, levels[level]) for level in shown]
    x, variables, words = zip(*made, strict=True)
    return Columns(np.stack(x, 1).astype(np.float32), np.array(variables), words, table.variables)


def fingerprint(name: str) -> str:
    """The pinned fingerprint of a data set; the data need not be here. Raises KdcoreError for an unknown name."""
    if name not in FINGERPRINTS:
        raise KdcoreError(f"unknown data set '{name}': choose one of {', '.join(sorted(FINGERPRINTS))}")
    return FINGERPRINTS[name]


@lru_cache(maxsize=2)
def load(name: str) -> Tabular:
    """Load a data set from the cache, its published file, OpenML or, if embedded, scikit-learn.

    A damaged file in the cache is moved aside and rebuilt, with a warning. Raises DataMissing if the data cannot be found or
    downloaded, KdcoreError if the published file has wrong class counts or other contents.
    """
    expected, path = fingerprint(name), paths.data() / f"{name}.csv"
    text = None
    if path.exists() and name not in EMBEDDED:
        text = _read(path, errors="replace")
        if hashlib.sha256(text.encode()).hexdigest() != expected:
            warnings.warn(f"{path} is damaged and was moved to {paths.set_aside(path).name}: {name} is rebuilt", stacklevel=1)
            text = None
    if text is None:
        text = _made(name, path, expected)
    lines = list(csv.reader(text.splitlines()))
    cells, words = [line[:-1] for line in lines[1:]], [line[-1] for line in lines[1:] if line]
    columns, levels = [], []
    for variable, column in zip(lines[0], zip(*cells, strict=True), strict=False):
        nominal = name in SOURCES and SOURCES[name].is_nominal(variable)
        known = sorted(set(column) - {MISSING}) if nominal else []
        number = {word: float(i) for i, word in enumerate(known)}
        columns.append([math.nan if cell == MISSING else number[cell] if nominal else float(cell) for cell in column])
        levels.append(tuple(known))
    classes = sorted(set(words))
    labels = np.array([classes.index(word) for word in words], np.int64)
    return Tabular(name, np.array(columns).T.copy(), labels, tuple(lines[0][:-1]), tuple(levels), tuple(classes))


def _made(name: str, path: Path, expected: str) -> str:
    """Make a data set's ``canonical`` text from its published form, and cache it."""
    if name in EMBEDDED:
        text, where, cure = canonical(*EMBEDDED[name]()), "scikit-learn", "install the version that requirements.txt pins"
    else:
        (rows, words, variables), where = _fetched(name)
        _check_counts(name, words, where, cure := f"save the complete published file as {path.parent / 'uci' / SOURCES[name].file}")
        text = canonical(rows, words, variables)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != expected:
        raise KdcoreError(
            f"{name} in {where} is not the data set this suite was built on (fingerprint {digest[:12]}, expected {expected[:12]}): {cure}"
        )
    if name in SOURCES:
        paths.write_text(path, text)
    return text


def canonical(rows: list[list], classes: list[str], variables: list[str]) -> str:
    """A data set as CSV, with its cases in an order that depends only on their contents (by class, then by text).

    rows: a number, a word or None (missing) for each variable of each case. Numbers are written in the shortest form that
    reads back exactly, so that 0.0200 and 0.02 are the same.
    """

    def cell(value) -> str:
        return MISSING if value is None else value if isinstance(value, str) else repr(float(value))

    lines = sorted(zip(classes, [[cell(value) for value in row] for row in rows], strict=True))
    return "".join(",".join((*row, word)) + "\n" for word, row in [("class", list(variables)), *lines])


def _read(path: Path, errors: str = "strict") -> str:
    try:
        return paths.regular(path).read_text(encoding="utf-8", errors=errors)
    except OSError as error:
        raise KdcoreError(f"cannot read {path} ({error.strerror}): make it readable and run the same command again") from error


def _check_counts(name: str, words: list[str], where: Path | str, cure: str) -> None:
    counts = SOURCES[name].counts
    actual = Counter(words)
    if actual != counts:
        wrong = [f"{actual.get(word, 0)} of '{word}' instead of {counts.get(word, 0)}" for word in sorted({*actual, *counts})
                 if actual.get(word, 0) != counts.get(word, 0)]  # fmt: skip
        raise KdcoreError(
            f"{name} in {where} has {len(words)} cases in {len(actual)} classes, not {sum(counts.values())} in {len(counts)}"
            f" ({', '.join(wrong[:2])}): {cure}"
        )


def _fetched(name: str) -> tuple[tuple[list[list], list[str], list[str]], Path | str]:
    """(rows, classes, variables) from the published file, OpenML or a download, and the source that was used."""
    source = SOURCES[name]
    path = paths.data() / "uci" / source.file
    if source.openml is not None and not path.exists():
        return _filled(name, *_openml(name)), f"OpenML (data set {source.openml})"
    if source.url is not None and not path.exists():
        _download(name, source.url, path)
    if source.labels_url is not None and not _labels(path, source).exists():
        _download(name, source.labels_url, _labels(path, source))
    try:
        variables, lines = {".arff": _arff, ".csv": _csv, ".mat": _mat}[path.suffix](path, source)
        label = 0 if source.label_first else -1
        words = [(source.words or {}).get(line[label], line[label]) for line in lines]
        first = int(source.numbered or source.label_first)
        cells = [line[first : None if source.label_first else -1] for line in lines]
        if {len(row) for row in cells} != {len(variables)}:
            raise ValueError(f"a line does not have {len(variables)} variables and a class")
        nominal = [source.is_nominal(variable) for variable in variables]
        rows = [
            [None if cell == MISSING else cell if is_word else float(cell) for cell, is_word in zip(row, nominal, strict=True)]
            for row in cells
        ]
    except (ValueError, IndexError, KeyError, NotImplementedError) as error:  # the last: MATLAB's newest format
        raise KdcoreError(f"{path} cannot be read ({error}): replace it by the published file") from error
    return _filled(name, rows, words, variables), path


def _labels(path: Path, source: Source) -> Path:
    return path.with_name(Path(source.labels_url).name)


def _download(name: str, url: str, path: Path) -> None:
    """Download ``url`` into ``path``, and unpack it if it is a .gz file."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read()
        content = gzip.decompress(content) if url.endswith(".gz") else content
    except (OSError, EOFError, http.client.HTTPException) as error:
        raise DataMissing(
            f"{name} is not in {paths.data()} and could not be downloaded from {url} ({error}): connect to the network, or save the "
            f"file as {path}"
        ) from error
    paths.write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))


def _filled(name: str, rows: list[list], classes: list[str], variables) -> tuple[list[list], list[str], list[str]]:
    """Replace the soybean set's missing words by the variable's most frequent one; other sets are left alone.

    The set circulates both as UCI publishes it and filled in this way (Weka's ReplaceMissingValues); only the filled form can
    be made from either.
    """
    if SOURCES[name].filled:
        modes = [Counter(sorted(value for value in column if value is not None)).most_common(1)[0][0] for column in zip(*rows, strict=True)]
        rows = [[mode if value is None else value for value, mode in zip(row, modes, strict=True)] for row in rows]
    return rows, classes, list(variables)


def _csv(path: Path, source: Source) -> tuple[tuple[str, ...], list[list[str]]]:
    """(variables, lines) of a CSV file; its first line is a heading if its last (or first) cell is not a class."""
    lines = [line for line in _read(path).splitlines() if line.strip()]
    known = set(source.words or source.counts)
    heading = lines and _cells(lines[0])[0 if source.label_first else -1] not in known
    return source.variables, [_cells(line) for line in lines[bool(heading) :: source.every]]


def _cells(line: str) -> list[str]:
    (cells,) = csv.reader([line], skipinitialspace=True)
    return [cell.strip() for cell in cells]


def _arff(path: Path, source: Source) -> tuple[list[str], list[list[str]]]:
    """(variables, lines) of an ARFF file without quotes; the class is the last attribute."""
    head, _, body = _read(path).partition("@data")
    variables = [line.split()[1] for line in head.splitlines() if line.lower().startswith("@attribute")]
    return variables[:-1], [[cell.strip() for cell in line.split(",")] for line in body.splitlines() if line.strip()]


def _mat(path: Path, source: Source) -> tuple[tuple[str, ...], list[list[str]]]:
    """(variables, lines) of an image [height, width, bands] in MATLAB's format, one line for each pixel that has a class."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        pixels, classes = (
            [value for key, value in loadmat(file).items() if not key.startswith("__")][0] for file in (path, _labels(path, source))
        )
    except MatReadError as error:
        raise ValueError(error) from error
    return source.variables, [[*map(str, pixels[place]), str(classes[place])] for place in zip(*classes.nonzero(), strict=True)]


def _openml(name: str) -> tuple[list[list], list[str], list[str]]:
    from sklearn.datasets import fetch_openml  # slow to import, and needed only once per cache

    source = SOURCES[name]
    try:
        # no data frame: a machine that runs trials needs no pandas
        fetched = fetch_openml(data_id=source.openml, as_frame=False, parser="liac-arff")
    except (OSError, ValueError) as error:
        raise DataMissing(
            f"{name} is not in {paths.data()} and could not be downloaded from OpenML ({str(error).splitlines()[0].rstrip(':')}): connect "
            f"to the network, or save UCI's file as {paths.data() / 'uci' / source.file}"
        ) from error
    names = list(fetched.feature_names)
    words = [fetched.categories.get(variable) if source.is_nominal(variable) else None for variable in names]
    rows = [
        [None if math.isnan(value) else known[int(value)] if known else float(value) for value, known in zip(row, words, strict=True)]
        for row in np.asarray(fetched.data, np.float64).tolist()
    ]
    return rows, [str(word) for word in fetched.target], list(source.variables or names)


def _sklearn(loader: str) -> tuple[list[list], list[str], list[str]]:
    from sklearn import datasets

    loaded = getattr(datasets, loader)()
    return loaded.data.tolist(), [str(loaded.target_names[label]) for label in loaded.target], [str(n) for n in loaded.feature_names]


EMBEDDED = {
    "breast_cancer_diagnostic": lambda: _sklearn("load_breast_cancer"),
    "wine": lambda: _sklearn("load_wine"),
    "iris": lambda: _sklearn("load_iris"),
}
