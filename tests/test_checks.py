"""``kdcore check``: sheets, pages and records that are not as they should be are told."""

from records import made

from kdcore import checks, papers
from kdcore.papers import sheet_page
from kdcore.trials import store as store_module
from kdcore.trials.store import Store


def test_an_outdated_page_is_told(tmp_path, monkeypatch):
    command = "python -m kdcore.papers.sheet_page"
    assert sheet_page.outdated(tmp_path) == [
        f"docs/sheet.md is missing: run {command}",
        f"kdcore/papers/sheet.schema.json is missing: run {command}",
    ]
    (tmp_path / "kdcore" / "papers").mkdir(parents=True)
    sheet_page.write(tmp_path)
    assert sheet_page.outdated(tmp_path) == []
    (tmp_path / "docs" / "sheet.md").write_text("older")
    assert sheet_page.outdated(tmp_path) == [f"docs/sheet.md is not up to date: run {command}"]
    monkeypatch.setattr(sheet_page, "EDITORS", "# other")
    assert "fsp/sheet.yaml: its first line must be # other" in sheet_page.outdated(tmp_path)


def test_a_broken_sheet_is_told(monkeypatch):
    paper = papers.get("hinton_mnist")
    monkeypatch.setitem(paper.budgets["smoke"]["arms"], "smal", {"epochs": 1})
    monkeypatch.setitem(paper.sheet["claims"][0]["left"], "arms", ["tiny"])
    monkeypatch.setitem(paper.tables[0]["rows"][0], "reference", 3)
    text = " ".join(checks.sheet_problems("hinton_mnist"))
    assert "has no 'reference' to say whose number" in text
    assert "'smal' in budget smoke matches no arm" in text and "names the arm 'tiny'" in text
    monkeypatch.setitem(paper.sheet["protocol"][0], "mark", "sure")
    monkeypatch.setitem(paper.sheet["claims"][0], "relation", "smaller")
    result = checks.sheet_problems("hinton_mnist")  # what is no sheet at all comes first
    assert len(result) == 2 and "mark 'sure'" in result[0] and "relation 'smaller'" in result[1]


def test_unknown_parameters_in_a_sheet_are_told(monkeypatch):
    paper = papers.Paper("hinton_mnist")
    monkeypatch.setattr(papers, "get", lambda key: paper)
    monkeypatch.setitem(paper.budgets["smoke"]["arms"], "small", {"epoch": 1})
    assert any("unknown parameters for 'small' at smoke: epoch" in problem for problem in checks.sheet_problems("hinton_mnist"))


def test_a_metric_that_no_record_has_is_told():
    paper = papers.Paper("hinton_mnist")
    paper.tables[0]["rows"][1]["metric"] = "test_erors"
    record = {"status": "done", "arm": "small", "metrics": {"test_errors": 3, "note": "x"}}
    assert checks.metric_problems(paper, [record]) == [
        "hinton_mnist/sheet.yaml: table errors, row 'small (2x800)': the records of arm 'small' have no number 'test_erors' "
        "(did you mean 'test_errors'?)"
    ]
    assert checks.metric_problems(paper, [record | {"status": "nan", "metrics": {"message": "m"}}]) == []


def test_a_stray_record_is_told(tmp_path):
    folder = tmp_path / "records" / "hinton_mnist"
    folder.mkdir(parents=True)
    (folder / "0123456789ab.json").write_text("{")
    (problem,) = checks.record_problems(tmp_path)
    assert "0123456789ab.json is damaged" in problem


def test_whatever_is_no_record_is_told(tmp_path):
    """Planted one at a time beside a good record: the file, and a word of what is said of it."""
    store, paper = Store(tmp_path), papers.get("hinton_mnist")
    trial = paper.trial("fast", "small", 0)
    store.put(made(trial, {"test_errors": 146}))
    good = store.path(trial)
    assert checks.record_problems(tmp_path) == []
    (good.parent / f"{trial.id}.lease").touch()
    (good.parent.parent / ".gitkeep").touch()
    assert checks.record_problems(tmp_path) == [], "a run's lease and git's own files may lie there"
    for name, words in {
        "records/hinton_mnist/0123456789ab.json": f"has the id {trial.id}",  # its name is not its id
        f"records/hinton_mnist/{trial.id}.json.bak": "is not a record",
        f"records/hinton_mnist/{trial.id.upper()}x.json": "is not a record",
        "records/hinton_mnist/notes.txt": "is not a record",
        "records/hinton_mnist/.tmp-abc.json": "is not a record",
        "records/hinton_mnist/other.lease": "is not a record",
        f"records/fsp/{trial.id}.json": "belongs elsewhere",
        f"records/hinton/{trial.id}.json": "no paper",
        f"records/{trial.id}.json": "not the folder of a paper",
        f"smoke/records/hinton_mnist/{trial.id}.json": "belongs elsewhere",
    }.items():
        stray = tmp_path / name
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_bytes(good.read_bytes())
        (problem,) = checks.record_problems(tmp_path)
        assert words in problem and (str(stray) in problem or str(stray.parent) in problem), name
        assert any(problem == each for each in checks.all_problems(tmp_path))
        stray.unlink()
        if not any(stray.parent.iterdir()):
            stray.parent.rmdir()
    (good.parent / "0123456789ab.json").mkdir()
    (problem,) = checks.record_problems(tmp_path)
    assert "is not a record" in problem


def test_a_notebook_that_github_would_not_render_is_told(tmp_path):
    (tmp_path / "executed").mkdir()
    (tmp_path / "executed" / "small.ipynb").write_bytes(b" " * 499_999)
    assert checks.notebook_problems(tmp_path) == []
    (tmp_path / "executed" / "large.ipynb").write_bytes(b" " * 1_234_567)
    (problem,) = checks.notebook_problems(tmp_path)
    assert problem.startswith(
        f"{tmp_path}/executed/large.ipynb has 1234 KB, and GitHub renders only notebooks that are smaller than 500 KB"
    )
    assert problem in checks.result_problems(tmp_path)


def test_check_reads_each_record_once(tmp_path, monkeypatch):
    """10,000 records in 10 s: a time would depend on the machine, so reads and ids are counted."""
    store, paper, seen = Store(tmp_path), papers.get("hinton_mnist"), []
    for seed in range(20):
        store.put(made(paper.trial("fast", "small", seed), {"test_errors": 146}))
    loads = store_module.loads
    monkeypatch.setattr(store_module, "loads", lambda content, where: seen.append(where) or loads(content, where))
    checks.all_problems(tmp_path)
    assert len(seen) == len(set(seen)) == 20
