"""``make gpu`` rehearsed on the CPU: no pytest, no Jupyter, no pydantic; stopped in the middle, everything made is packed."""

import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import bare
import numpy as np
import pytest
import torch

from benchmarks import carry, gpu, gpu_checks
from kdcore import data
from kdcore.data.images import ARRAYS

ROOT = Path(gpu.__file__).resolve().parents[1]


def test_it_runs_on_a_bare_machine_and_packs_what_it_has_when_it_is_stopped(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    words = ["--out", str(out), "--work", str(work), "--device", "cpu", "--budget", "smoke", "--minutes", "8", "--parts", "checks,trials"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, env=bare.environment(tmp_path / "bare"), stdout=said, stderr=said
        )
        try:
            end = time.monotonic() + 300  # on a busy machine; a record comes after half a minute on a quiet one
            while not gpu.new_records(work / "results") and process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            made = [path.relative_to(work).as_posix() for path in gpu.new_records(work / "results")]
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    summary, log = (out / "summary.txt").read_text(), (out / "log.txt").read_text()
    assert log == (tmp_path / "said").read_text(), "the terminal says what the log says"
    assert "checks need a GPU" in log and "1/" in log and "hinton_mnist: " in log and "Traceback" not in log
    lines = {line.split()[0]: line for line in summary.splitlines()}
    assert lines["checks"].split()[1] == "done" and lines["trials"].split()[1] == "stopped"
    with tarfile.open(out / "pack-1.tar") as tar:
        names = tar.getnames()
    assert made and set(made) <= set(names) and "trials.txt" in names


def test_a_part_that_fails_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    """Two parts as processes of their own: one fails, one outlasts its time and is ended."""
    script = "import sys, time; part = sys.argv[sys.argv.index('--part') + 1]; print('I am', part, flush=True); {}"
    body = script.format("sys.exit(1) if part == 'checks' else time.sleep(60)")
    monkeypatch.setattr(gpu.sys, "executable", str(_command(tmp_path / "python", body)))
    monkeypatch.setattr(gpu, "_copy_records", lambda results: results.mkdir(parents=True))
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    monkeypatch.setattr(gpu, "PARTS", {"checks": 0.5, "speed": 0.1, "trials": 1.0})
    start = time.monotonic()
    assert gpu.main(["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--minutes", "0.12", "--parts", "checks,speed"]) == 1
    assert time.monotonic() - start < 10
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert summary[1].split()[:2] == ["checks", "failed"] and summary[1].endswith("I am checks")
    assert summary[2].split()[:4] == ["speed", "time", "was", "up"]
    assert "I am speed" in capsys.readouterr().out


def _command(path: Path, body: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return path


def test_tars_stay_below_their_size_and_records_come_first(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "TAR", 10_000 + 2 * 2048)
    monkeypatch.setattr(gpu, "TARS", 3)
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    sizes = {"results/records/fsp/new.json": 6000, "cache/weights/a.safetensors": 9000, "cache/weights/b.safetensors": 9500}
    sizes |= {
        "cache/weights/c.safetensors": 20_000,
        "cache/checkpoints/x/state.safetensors": 3000,
        "cache/checkpoints/x/.tmp-1": 10,
        "log.txt": 100,
    }
    for name, size in sizes.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(b"x" * size)
    known = next((ROOT / "results" / "records").glob("*/*.json"))
    (work / "results" / "records" / known.parent.name).mkdir(exist_ok=True)
    (work / "results" / "records" / known.parent.name / known.name).write_bytes(known.read_bytes())
    written = gpu.pack(work, out)
    contents = []
    for path in written:
        with tarfile.open(path) as tar:
            contents.append(tar.getnames())
    assert contents == [
        ["results/records/fsp/new.json", "log.txt"],
        ["cache/weights/a.safetensors"],
        ["cache/weights/b.safetensors"],
    ], "the committed record stays at home; what is too large, or did not fit, too"


def test_a_wrong_part_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--out", str(tmp_path), "--parts", "checks,sped"])
    assert caught.value.code == 2 and "unknown part 'sped': choose from checks, numerics, speed, trials" in capsys.readouterr().err


@pytest.mark.parametrize("allowed", [1.0, 0.0])
def test_numerics_compare_losses_of_both_kinds_of_net(allowed, monkeypatch, capsys):
    """On a CPU all but bfloat16 agree exactly; where nothing is allowed, that is a failure."""
    monkeypatch.setattr(gpu, "TOLERANCES", {"CPU": 0.0, "eager": 0.0, "bfloat16": allowed})
    monkeypatch.setattr(gpu, "COMPARED_STEPS", 2)
    threads = torch.get_num_threads()
    try:
        assert gpu.main(["--out", ".", "--device", "cpu", "--part", "numerics"]) == (0 if allowed else 1)
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert shown.count("FAILED") == (0 if allowed else 2) and "WRN-16-1, three methods" in shown


def test_the_checks_hold_on_a_cpu():
    """Those that compare, with the CPU in place of the GPU: so that the first run there does not stumble over their own slips."""
    source = Path(gpu_checks.__file__).read_text().replace('"cuda"', '"cpu"').replace(".cuda()", "")
    source = source.replace("        step.eager = eager\n", "").replace("        assert step.eager == eager\n", "")
    copy: dict = {"__name__": "gpu_checks_on_a_cpu"}
    exec(compile(source, "gpu_checks_on_a_cpu", "exec"), copy)
    compared = [name for name in copy["CHECKS"] if "trains as" in name or "resumed" in name]
    assert len(compared) == 6
    for name in compared:
        copy["CHECKS"][name]()


@pytest.mark.parametrize("shape", [(7, 3, 5, 6), (4, 1, 6, 5)])
def test_carried_images_are_the_images(shape):
    """Noise and extremes, where differences leave 0..255."""
    rng = np.random.default_rng(0)
    for images in (rng.integers(0, 256, shape, dtype=np.uint8), rng.choice(np.array([0, 255], np.uint8), shape)):
        assert np.array_equal(carry.restored(carry.residual(images)), images)


def test_the_prediction_by_hand():
    """One row, one column: 10, 13, 13 | 10: the first pixel itself, its neighbour's difference; a constant picture leaves nothing else."""
    assert carry.residual(np.array([[[[10, 13, 13]]]], np.uint8)).tolist() == [[[[10, 3, 0]]]]
    flat = carry.residual(np.full((1, 3, 2, 2), 200, np.uint8))
    assert flat[1].tolist() == [[[200, 0], [0, 0]]] and not flat[[0, 2]].any(), "grey has no colour"


def test_a_data_set_goes_through_parts_and_is_the_one_that_loads(tmp_path, monkeypatch):
    digits = data.load("colour_digits")
    parts = carry.pack(tmp_path / "parts", ["colour_digits"], 300_000)
    assert len(parts) > 2 and max(part.stat().st_size for part in parts) <= 300_000
    (path,) = carry.unpack(tmp_path / "parts", tmp_path / "data")
    from safetensors.numpy import load_file

    unpacked = load_file(path)
    assert set(unpacked) == set(ARRAYS)
    for key, value in unpacked.items():
        own = getattr(digits, key).numpy()
        assert np.array_equal(value, own) and value.dtype == own.dtype


def test_new_records_are_those_that_the_checkout_lacks_and_all_of_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for name in ("records/fsp/old.json", "smoke/records/fsp/smoke.json"):
        for results in (tmp_path / "results", tmp_path / "work"):
            (results / name).parent.mkdir(parents=True, exist_ok=True)
            (results / name).touch()
    for name in ("new.json", ".tmp-1.json"):
        (tmp_path / "work" / "records" / "fsp" / name).touch()
    assert [path.name for path in gpu.new_records(tmp_path / "work")] == ["new.json", "smoke.json"]
