"""What is checked of a folder, a number or a checkout before anything is done with it."""

from pathlib import Path

import pytest
from checkouts import ROOT, made_checkout

from kdcore import validation
from kdcore.errors import KdcoreError


def test_the_results_are_the_checkouts_wherever_one_stands(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    assert validation.results().resolve() == ROOT / "results"
    monkeypatch.chdir(ROOT / "kdcore" / "papers")
    assert validation.results().resolve() == ROOT / "results"
    monkeypatch.chdir(ROOT)
    assert validation.results() == Path("results")


def test_without_any_checkout_the_folder_must_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(validation, "__file__", str(tmp_path / "site-packages" / "kdcore" / "validation.py"))
    with pytest.raises(KdcoreError, match="there is no checkout of the repository here: .* --results DIR"):
        validation.results()
    assert validation.results("here") == Path("here")
    made_checkout(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine" / "notebooks")
    assert validation.checkout() == tmp_path / "mine", "kdcore is installed, and one stands in a checkout"


@pytest.mark.parametrize(
    "bad, complaint",
    [
        *((bad, "the results folder must be a path such as results, not ") for bad in ("", 3, None, b"results", ["results"])),
        ("a\0b", "cannot be used .embedded null byte"),
        ("x" * 5000, "cannot be used .*File name too long"),
        ("~nobody-of-this-name/x", "cannot be used .Could not determine home directory"),
    ],
)
def test_no_folder(bad, complaint):
    with pytest.raises(KdcoreError, match=complaint) as caught:
        validation.folder(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["abc", "-1", "inf", "1e3", "٣"])
def test_seconds_in_an_environment_variable(monkeypatch, text):
    monkeypatch.setenv("KDCORE_GRACE_SECONDS", text)
    with pytest.raises(KdcoreError, match="KDCORE_GRACE_SECONDS must be a number of seconds such as 60"):
        validation.environment_seconds("KDCORE_GRACE_SECONDS", 60)
    monkeypatch.setenv("KDCORE_GRACE_SECONDS", "0.5")
    assert validation.environment_seconds("KDCORE_GRACE_SECONDS", 60) == 0.5
