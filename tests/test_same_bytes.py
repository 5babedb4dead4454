"""The report has the same bytes whatever processor draws it. ``make portable`` compares all of it; here, what once differed."""

import os
import subprocess
import sys

import numpy as np
import pytest

from kdcore.papers.activation_boundaries.figures import boundaries
from kdcore.papers.fsp.figures import matrices
from kdcore.papers.model_compression.figures import clouds
from kdcore.report import canvas, drawing, figures, statistics

# What numpy, OpenBLAS, torch and the C library choose on a processor with AVX2 alone, and on one with neither that nor FMA.
PROCESSORS = {
    "here": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    },
    "SSE": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
    },
}
DRAW = """
import hashlib
import numpy as np
from kdcore.papers.activation_boundaries import figures as activation_boundaries
from kdcore.papers.model_compression import figures as model_compression
from kdcore.papers.ba_caruana_mimic.figures import logits_and_softmax
from kdcore.papers.fisher_darts.figures import scatter
from kdcore.papers.hinton_mnist.figures import confusion
from kdcore.report import canvas, figures, statistics, words
rng = np.random.default_rng(0)
net = lambda: [[rng.normal(size=(b, a)).round(4).tolist(), rng.normal(size=b).round(4).tolist()] for a, b in ((2, 24), (24, 24), (24, 4))]
metrics = {"toy": {name: net() for name in activation_boundaries.PICTURES}, "mse_other_side_percent": 1, "boundary_other_side_percent": 2}
groups = {str(g): [(0.9 + 0.01 * g + x, 30 + g * g + 40 * y) for x, y in rng.random((3, 2)) / 50] for g in range(5)}
values = rng.random((3, 40)) * 90 + 1
intervals = [statistics.mean_interval(column) for column in values.T]
drawn = {
    "toy": activation_boundaries.draw_toy("digits", metrics),
    "pseudo": model_compression.clouds(model_compression._two_dimensions()),
    "similarity": scatter(groups),
    "log": figures.curve(range(40), {"a": values}, {"mark": values[:, 0].tolist()}, log=True),
    "curves": figures.learning_curves({"arm": (np.arange(40) + 1, values)}, "error", "Title"),
    "softmax": logits_and_softmax({"a": values[0, :4].tolist()}),
    "confusion": confusion(rng.integers(0, 90, (6, 6)), range(6)),
}
for name, figure in drawn.items():
    for kind, data in (("svg", canvas.svg(figure)), ("png", canvas.png(figure))):
        print(name, kind, hashlib.sha256(data).hexdigest())
for left, right in zip(values[:, :20].T, values[:, 20:].T):
    test = statistics.claim_test(left, right, "<")
    print(test, statistics.reported_test([(left[0], 1.5)], [(right[0], 2.5)], 5, "same", 1), words.estimate(*intervals[0]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.uname().machine != "x86_64", reason="instruction sets of x86-64")
def test_processors_draw_and_write_the_same_bytes():
    runs = {
        name: subprocess.Popen([sys.executable, "-c", DRAW], env=os.environ | words, stdout=subprocess.PIPE, text=True)
        for name, words in PROCESSORS.items()
    }
    lines = {name: run.communicate()[0].splitlines() for name, run in runs.items()}
    assert len(lines["here"]) == 2 * 7 + 20
    for name in ("AVX2", "SSE"):
        assert [one for one, two in zip(lines["here"], lines[name], strict=True) if one != two] == [], name


def noisy(values, scale: float = 4e-15):
    return np.asarray(values, float) * (1 + scale * np.random.default_rng(1).standard_normal(np.shape(values)))


def test_last_digits_are_not_drawn():
    values = np.random.default_rng(0).random((3, 30)) * 90 + 1
    for draw in (
        lambda v: figures.curve(range(30), {"a": v}, {"m": v[:, 0]}, log=True),
        lambda v: figures.error_against([1, 2.5, 40], {"a": v.T[:3].tolist()}),
        lambda v: matrices({"a": [v, v]}, ("one", "two")),
        lambda v: clouds({"a": v.reshape(-1, 2)}),
    ):
        one, two = draw(values), draw(noisy(values))
        assert canvas.svg(one) == canvas.svg(two) and canvas.png(one) == canvas.png(two)


def test_last_digits_of_matrices_and_logarithms_are_not_drawn(monkeypatch):
    """Coordinates come of products of matrices and of logarithms, which two processors round differently. Straight lines of many points
    show it most: whether a point lies left or right of its neighbours is rounding alone."""
    from matplotlib import scale, transforms

    def shaken(function):
        def rounded_differently(*args, **kwargs):
            exact = function(*args, **kwargs)
            return exact * (1 + 3e-16 * np.sin(1e5 + 1e4 * np.asarray(exact)))  # the same each time, as on one processor

        return rounded_differently

    class Shaken:
        def __getattr__(self, name):
            function = getattr(np, name)
            return shaken(function) if name in ("dot", "log10", "log", "power") else function

    x = np.linspace(0, 1, 101)
    for draw in (
        lambda: figures.curve(x, {"a": [3 - 2 * x, 7 * x + 1]}, {"mark": 0.3}, log=True),
        lambda: figures.curve(x, {"a": [4 - 3 * x]}),
        lambda: figures.learning_curves({"a": (np.arange(9) + 1, np.array([9.0 / (np.arange(9) + 1)] * 2))}, "error"),
        lambda: boundaries(
            {"a": (np.ones((9, 9), int), [np.add.outer(x[::12] - 0.3, 2 * x[::12])])}, x[::12], x[::12], np.eye(2), np.arange(2)
        ),
    ):
        plain = draw()
        plain = canvas.svg(plain), canvas.png(plain)
        with monkeypatch.context() as patched:
            patched.setattr(transforms, "np", Shaken())
            patched.setattr(scale, "np", Shaken())
            other = draw()
            assert canvas.svg(other) == plain[0]
            assert canvas.png(other) == plain[1]


def test_what_stays_of_an_svg():
    text = """<!-- 1.23456789 --><path id="p0123456789" d="M 1.2345678 -0.00012 L 2.5 3"
transform="translate(9.87654 -0) scale(0.08125 -0.08125)"/>
<image id="image0123456789" xlink:href="data:image/png;base64,AAAA1.23456789+/="/>
<use clip-path="url(#p0123456789)" xlink:href="#DejaVuSans-4a"/>"""
    settled = canvas.settled(text)
    assert "<!-- 1.23456789 -->" in settled and "base64,AAAA1.23456789+/=" in settled and "scale(0.08125 -0.08125)" in settled
    assert 'd="M 1.23 0 L 2.5 3"' in settled and "translate(9.88 0)" in settled
    assert 'id="p0"' in settled and "url(#p0)" in settled and 'id="image1"' in settled and "#DejaVuSans-4a" in settled


def test_rounding():
    assert statistics.rounded(0.1 + 0.2) == 0.3 and statistics.rounded(-1 / 3, 3) == -0.333 and np.isnan(statistics.rounded(np.nan))
    assert statistics.rounded(np.inf) == np.inf and statistics.rounded(1.5e300) == 1.5e300
    assert [statistics.exponent(x) for x in (1000, 999.9, 0.02, -5e-324, 1e308, 0.1 + 0.2)] == [3, 2, -2, -324, 308, -1]
    nested = drawing.rounded({"a": [(0.1 + 0.2, "x", 3)], "b": np.array([[1 / 3]]), "c": np.float32(0.5)})
    assert nested == {"a": [(0.3, "x", 3)], "b": np.array([[0.333333333]]), "c": 0.5}
