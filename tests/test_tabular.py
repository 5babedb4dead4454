"""Tabular data: UCI's files, ARFF and OpenML give the same bytes; what is not whole or not the same is refused."""

import gzip
import hashlib
import io
import urllib.error

import numpy as np
import pytest
import scipy.io
from sklearn.utils import Bunch

from kdcore import data, paths
from kdcore.data import tabular
from kdcore.errors import KdcoreError

CSV = "11,5,0.0200,2\n12,3,?,4\n\n13,3,1e1,2\n"  # number, two variables, class
ARFF = """% a comment
@relation plants
@attribute leaf {round, long}
@attribute stem {tall,short,none}
@attribute class {rot,spot}

@data
round,tall,rot
long,?,spot
long,none,rot
?,none,spot
long,none,spot
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Two small sets of their own: cells, from CSV, and plants, from ARFF."""
    cells = tabular.Source(
        "cells.csv", {"benign": 2, "malignant": 1}, 7, variables=("size", "shape"), numbered=True, words={"2": "benign", "4": "malignant"}
    )
    plants = tabular.Source("plants.arff", {"rot": 2, "spot": 3}, 8, nominal=True, filled=True)
    people = tabular.Source(
        "people.csv", {"no": 2, "yes": 1}, url="https://example.org/people.data.gz", variables=("age", "job"), nominal=("job",)
    )
    field = tabular.Source(
        "field.mat", {"corn": 2, "oats": 1}, url="https://example.org/field.mat", labels_url="https://example.org/field_gt.mat",
        variables=("red", "green"), words={"1": "corn", "2": "oats"},
    )  # fmt: skip
    for name, source, text in (
        ("people", people, "age,job,class\n20.0,cook,no\n31.0,?,no\n40.0,nurse,yes\n"),
        ("field", field, "red,green,class\n1.0,7.0,corn\n4.0,8.0,corn\n2.0,9.0,oats\n"),
        ("cells", cells, "size,shape,class\n3.0,10.0,benign\n5.0,0.02,benign\n3.0,?,malignant\n"),
        (
            "plants",
            plants,
            "leaf,stem,class\nlong,none,rot\nround,tall,rot\nlong,none,spot\nlong,none,spot\nlong,none,spot\n",
        ),
    ):
        monkeypatch.setitem(tabular.SOURCES, name, source)
        monkeypatch.setitem(tabular.FINGERPRINTS, name, hashlib.sha256(text.encode()).hexdigest())
    tabular.load.cache_clear()
    yield
    tabular.load.cache_clear()


def put(name, text):
    path = paths.data() / "uci" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_words_and_numbers_in_one_set():
    # as UCI writes it: a space after each comma, a full line of blanks, no heading
    put("people.csv", "40, nurse, yes\n20, cook, no\n\n31, ?, no\n")
    result = tabular.load("people")
    assert result.levels == ((), ("cook", "nurse"))
    assert np.array_equal(result.values, [[20, 0], [31, np.nan], [40, 1]], equal_nan=True) and result.labels.tolist() == [0, 0, 1]
    # as other copies have it: a heading, quotes
    put("people.csv", '"age","job","tired"\n31,"?","no"\n40,"nurse","yes"\n20,"cook","no"\n')
    (paths.data() / "people.csv").unlink()
    tabular.load.cache_clear()
    assert np.array_equal(tabular.load("people").values, result.values, equal_nan=True)


def answers(monkeypatch, files):
    """A stand-in for the network: {url: bytes}."""
    asked = []

    def open_url(url, timeout):
        asked.append(url)
        if url not in files:
            raise urllib.error.URLError("no route to host")
        return io.BytesIO(files[url])

    monkeypatch.setattr("urllib.request.urlopen", open_url)
    return asked


def test_a_published_file_is_fetched_once(monkeypatch):
    asked = answers(monkeypatch, {"https://example.org/people.data.gz": gzip.compress(b"40,nurse,yes\n20,cook,no\n31,?,no\n")})
    assert len(tabular.load("people").labels) == 3
    tabular.load.cache_clear()
    tabular.load("people")
    assert asked == ["https://example.org/people.data.gz"]


@pytest.mark.parametrize("files, words", [({}, "no route to host"), ({"https://example.org/people.data.gz": b"not packed"}, "gzip")])
def test_what_cannot_be_fetched_says_where_to_put_it(monkeypatch, files, words):
    answers(monkeypatch, files)
    with pytest.raises(KdcoreError, match=rf"people is not in .*{words}.*save the file as .*people\.csv") as caught:
        tabular.load("people")
    assert "\n" not in str(caught.value) and not list((paths.data()).glob("**/people*"))


def test_a_picture_in_matlabs_format(monkeypatch):
    def mat(**arrays):
        file = io.BytesIO()
        scipy.io.savemat(file, arrays)
        return file.getvalue()

    pixels = np.array([[[1, 7], [2, 9]], [[3, 3], [4, 8]]], np.uint16)  # two rows, two columns, two bands
    labels = np.array([[1, 2], [0, 1]], np.uint8)  # 0: no class
    files = {"https://example.org/field.mat": mat(field=pixels), "https://example.org/field_gt.mat": mat(field_gt=labels)}
    answers(monkeypatch, files)
    result = tabular.load("field")
    assert result.values.tolist() == [[1, 7], [4, 8], [2, 9]] and result.labels.tolist() == [0, 0, 1]
    (paths.data() / "field.csv").unlink()
    put("field.mat", "no picture")
    tabular.load.cache_clear()
    with pytest.raises(KdcoreError, match="field.mat cannot be read"):
        tabular.load("field")


def test_every_so_many_th_case(monkeypatch):
    text = "n,class\n0.0,a\n3.0,a\n6.0,b\n"
    monkeypatch.setitem(tabular.SOURCES, "many", tabular.Source("many.csv", {"a": 2, "b": 1}, url="x", variables=("n",), every=3))
    monkeypatch.setitem(tabular.FINGERPRINTS, "many", hashlib.sha256(text.encode()).hexdigest())
    lines = [f"{n},{'ab'[n > 4]}" for n in range(9)]
    for heading in ([], ["count,kind"]):
        put("many.csv", "\n".join(heading + lines) + "\n")
        tabular.load.cache_clear()
        (paths.data() / "many.csv").unlink(missing_ok=True)
        assert tabular.load("many").values[:, 0].tolist() == [0, 3, 6]


def test_the_sets_of_model_compression_are_the_papers():
    """Cases and shares of the classes as UCI and the ground truth of the scene list them."""
    totals = {"adult": (32561, 2), "letter": (20000, 26), "indian_pines": (10249, 16), "covtype": (58102, 7)}
    assert {n: (sum(s.counts.values()), len(s.counts)) for n, s in tabular.SOURCES.items() if n in totals} == totals
    adult, letter = tabular.SOURCES["adult"], tabular.SOURCES["letter"]
    assert adult.counts[">50K"] == 7841 and len(adult.variables) == 14 and len(adult.nominal) == 8
    assert letter.counts["O"] == 753 and sum(letter.counts[c] for c in "ABCDEFGHIJKLM") == 9940 and len(letter.variables) == 16
    # 211,840 of 581,012 are spruce/fir, and 2,455 of 10,249 pixels soybean min till
    covtype = tabular.SOURCES["covtype"]
    assert abs(covtype.counts["spruce/fir"] / 58102 - 211840 / 581012) < 0.001 and len(covtype.variables) == 54
    assert tabular.SOURCES["indian_pines"].counts["soybean min till"] == 2455 and len(tabular.SOURCES["indian_pines"].variables) == 200


def test_the_five_sets_are_the_papers():
    """Cases and classes as the UCI repository lists them."""
    totals = {"breast_cancer": (699, 2), "ionosphere": (351, 2), "glass": (214, 6), "soybean": (683, 19), "sonar": (208, 2)}
    assert {n: (sum(s.counts.values()), len(s.counts)) for n, s in tabular.SOURCES.items() if n in totals} == totals
    assert tabular.SOURCES["breast_cancer"].counts == {"benign": 458, "malignant": 241}
    assert sorted(tabular.SOURCES["glass"].counts.values()) == [9, 13, 17, 29, 70, 76]
    assert tabular.SOURCES["ionosphere"].counts == {"b": 126, "g": 225}
    assert tabular.SOURCES["sonar"].counts == {"Mine": 111, "Rock": 97}
    variables = {name: len(tabular.SOURCES[name].variables or ()) for name in totals}
    assert variables == {"breast_cancer": 9, "ionosphere": 34, "glass": 9, "soybean": 0, "sonar": 60}


def test_embedded_sets_need_no_network():
    # counts that scikit-learn's documentation gives
    for name, shape, counts in (
        ("breast_cancer_diagnostic", (569, 30), {"malignant": 212, "benign": 357}),
        ("wine", (178, 13), {"class_0": 59, "class_1": 71, "class_2": 48}),
        ("iris", (150, 4), {"setosa": 50, "versicolor": 50, "virginica": 50}),
    ):
        result = tabular.load(name)
        assert result.values.shape == shape and result.values.dtype == np.float64 and result.labels.dtype == np.int64
        assert dict(zip(result.classes, np.bincount(result.labels).tolist(), strict=True)) == counts


def test_embedded_values_keep_their_labels():
    from sklearn.datasets import load_iris

    iris, results = load_iris(), tabular.load("iris")
    order = np.lexsort(iris.data.T)
    mine = np.lexsort(results.values.T)
    assert np.array_equal(results.values[mine], iris.data[order])
    pairs = {(*row, label) for row, label in zip(iris.data.tolist(), iris.target.tolist(), strict=True)}
    assert pairs == {(*row, label) for row, label in zip(results.values.tolist(), results.labels.tolist(), strict=True)}
    assert results.classes == tuple(iris.target_names)


def test_a_plain_uci_file():
    put("cells.csv", CSV)
    result = tabular.load("cells")
    assert result.variables == ("size", "shape") and result.levels == ((), ()) and result.classes == ("benign", "malignant")
    assert np.array_equal(result.values, [[3, 10], [5, 0.02], [3, np.nan]], equal_nan=True)
    assert result.labels.tolist() == [0, 0, 1]
    # cached: UCI's file is not needed again
    cached = paths.data() / "cells.csv"
    written = cached.read_text()
    (paths.data() / "uci" / "cells.csv").unlink()
    tabular.load.cache_clear()
    assert np.array_equal(tabular.load("cells").values, result.values, equal_nan=True) and cached.read_text() == written


def test_the_order_of_the_cases_does_not_matter():
    put("cells.csv", "9,3,10.0,2\n8,3,?,4\n7,5,.02,2\n")
    assert tabular.load("cells").values[0].tolist() == [3, 10]
    put("cells.csv", "9,3,10.0,4\n8,3,?,2\n7,5,.02,2\n")  # the same columns, other pairs: another data set
    (paths.data() / "cells.csv").unlink()
    tabular.load.cache_clear()
    with pytest.raises(KdcoreError, match="is not the data set this suite was built on"):
        tabular.load("cells")
    assert not (paths.data() / "cells.csv").exists(), "what is refused is not kept"


def test_missing_words_become_the_most_frequent():
    put("plants.arff", ARFF)
    result = tabular.load("plants")
    assert result.variables == ("leaf", "stem") and result.levels == (("long", "round"), ("none", "tall"))
    assert result.values.tolist() == [[0, 0], [1, 1], [0, 0], [0, 0], [0, 0]]
    # the filled file is the same set
    filled = ARFF.replace("long,?", "long,none").replace("?,none", "long,none")
    put("plants.arff", filled)
    (paths.data() / "plants.csv").unlink()
    tabular.load.cache_clear()
    assert tabular.load("plants").values.tolist() == result.values.tolist()


def openml(monkeypatch, **sets):
    """A stand-in for OpenML that answers as scikit-learn documents: words as numbers, ``categories`` beside them."""
    asked = []

    def fetch(*, data_id, as_frame, parser):
        asked.append(data_id)
        assert as_frame is False and parser == "liac-arff"
        return sets[f"set{data_id}"]

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    return asked


def test_openml_gives_the_same_set(monkeypatch):
    nan = float("nan")
    asked = openml(
        monkeypatch,
        set7=Bunch(
            data=np.array([[5, 0.02], [3, nan], [3, 10]]),
            target=np.array(["benign", "malignant", "benign"], object),
            feature_names=["Size", "Shape"],
            categories={},
        ),
        set8=Bunch(
            data=np.array([[0, 0], [1, nan], [1, 2], [nan, 2], [1, 2.0]]),
            target=np.array(["rot", "spot", "rot", "spot", "spot"], object),
            feature_names=["leaf", "stem"],
            categories={"leaf": ["round", "long"], "stem": ["tall", "short", "none"]},
        ),
    )
    cells, plants = tabular.load("cells"), tabular.load("plants")  # their fingerprints are those of the files
    assert cells.variables == ("size", "shape") and plants.levels == (("long", "round"), ("none", "tall"))
    tabular.load.cache_clear()
    tabular.load("cells")
    assert asked == [7, 8], "fetched once"


def test_wrong_counts_are_refused(monkeypatch):
    put("cells.csv", CSV.replace("13,3,1e1,2\n", ""))
    with pytest.raises(KdcoreError, match=r"2 cases in 2 classes, not 3 in 2 \(1 of 'benign' instead of 2\)") as caught:
        tabular.load("cells")
    assert "\n" not in str(caught.value) and not (paths.data() / "cells.csv").exists()
    put("cells.csv", CSV.replace("1e1,2", "1e1,3"))  # not in the first line, which could be a heading
    with pytest.raises(KdcoreError, match=r"3 cases in 3 classes, not 3 in 2 \(1 of '3' instead of 0, 1 of 'benign' instead of 2\)"):
        tabular.load("cells")
    openml(monkeypatch, set8=Bunch(data=np.zeros((4, 1)), target=["rot"] * 4, feature_names=["leaf"], categories={"leaf": ["round"]}))
    with pytest.raises(KdcoreError, match=r"plants in OpenML \(data set 8\) has 4 cases in 1 classes"):
        tabular.load("plants")


@pytest.mark.parametrize(
    "text, words", [("1,2\n", "not have 2 variables"), (CSV.replace("0.0200", "big"), "could not convert"), ("", "not have")]
)
def test_files_that_are_no_such_table(text, words):
    put("cells.csv", text)
    with pytest.raises(KdcoreError, match=words) as caught:
        tabular.load("cells")
    assert "\n" not in str(caught.value)


def test_a_changed_cache_is_moved_aside_and_made_anew():
    put("cells.csv", CSV)
    tabular.load("cells")
    cached = paths.data() / "cells.csv"
    good = cached.read_bytes()
    for changed in (good.replace(b"10.0", b"11.0"), good.replace(b"malignant", b"benign"), b"", good.replace(b"malignant", b"m\xff")):
        cached.write_bytes(changed)
        tabular.load.cache_clear()
        with pytest.warns(UserWarning, match="cells.csv is damaged and was moved to cells.csv.damaged.*: cells is rebuilt"):
            tabular.load("cells")
        assert cached.read_bytes() == good


def test_no_network_is_one_sentence(monkeypatch):
    def fail(**_):
        raise OSError("network is unreachable\nat all")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fail)
    with pytest.raises(
        KdcoreError, match=r"sonar is not in .* could not be downloaded from OpenML.*save UCI's file as .*sonar.csv"
    ) as caught:
        tabular.load("sonar")
    assert "\n" not in str(caught.value)


def test_fingerprints_are_known_without_the_data():
    assert data.fingerprint("glass") == tabular.FINGERPRINTS["glass"] and data.fingerprint("mnist") != data.fingerprint("glass")
    assert all(len(results) == 64 for results in tabular.FINGERPRINTS.values())
    assert len(set(tabular.FINGERPRINTS.values())) == len(tabular.FINGERPRINTS)
    with pytest.raises(KdcoreError, match="unknown data set 'galss'"):
        tabular.load("galss")
    with pytest.raises(KdcoreError, match="unknown data set 'galss'"):
        data.fingerprint("galss")


def a_table():
    nan = float("nan")
    values = np.array([[1.5, 0, 2], [nan, 1, 0], [4.5, 1, 1], [9.0, 0, nan]])
    return tabular.Tabular(
        "t", values, np.array([0, 1, 0, 1]), ("size", "leaf", "stem"), ((), ("long", "round"), ("a", "b", "c")), ("x", "y")
    )


def test_columns():
    result = tabular.columns(a_table())
    assert result.variable.tolist() == [0, 1, 2, 2, 2] and result.words == (None, "round", "a", "b", "c")
    assert result.x[:, 1:].tolist() == [[0, 0, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], "a missing word is none of them"
    assert np.isnan(result.x[:, 0]).tolist() == [False, True, False, False]
    assert result.conditions(0, 2.5) == ("size ≤ 2.5", "size > 2.5")
    assert result.conditions(3, 0.5) == ("stem ≠ b", "stem = b")


def test_missing_numbers_become_the_training_cases_median():
    result = tabular.columns(a_table())
    assert result.filled(np.array([0, 2, 3]))[:, 0].tolist() == [1.5, 4.5, 4.5, 9.0]
    assert result.filled(np.array([0, 2]))[:, 0].tolist() == [1.5, 3.0, 4.5, 9.0], "test cases have no say"
    assert np.isnan(result.x[1, 0]), "the columns themselves stay as they are"
    assert result.filled(np.array([0, 2])).flags.c_contiguous and result.filled(np.array([0, 2])).dtype == np.float32
