"""penstock calibrate from a workload's folder to a model file that runs, on a tiny model with random weights."""
import json
import pathlib
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "faults"))
import gguf_file  # noqa: E402

WORDS = "refund parcel invoice broken late lamp chair please where my is the not a on".split()
PARTS = ["examples"] * 12 + ["search"] * 6 + ["verify"] * 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model file, a workload and a general text."""
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "tiny.gguf").write_bytes(gguf_file.build()[1])
    workload = folder / "desk"
    workload.mkdir()
    (workload / "workload.json").write_text(json.dumps({
        "schema": 1, "name": "desk", "task": {"kind": "text"}, "prompts": [{"name": "terse", "instruction": "Answer in a word."}], "grader": {"type": "exact"}, "goal": {"quality_floor": 0.5}}))
    items = []
    for i, part in enumerate(PARTS):
        text = " ".join(WORDS[(i * 7 + k * (i + 3)) % len(WORDS)] for k in range(5)) + f" {i} {i * i} {chr(97 + i)}"
        items.append({"id": f"m{i}", "messages": [{"role": "user", "content": text}], "reference": WORDS[i % 5], "part": part, "cluster": f"c{i}"})
    (workload / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "general.txt").write_text("It was the best of times, it was the worst of times. " * 20)
    return folder


@pytest.fixture
def calibrate(penstock, place, tmp_path):
    """calibrate(*arguments) -> (exit code, output, errors, the new file)."""
    def run(*arguments, out=None):
        target = out or tmp_path / "new.gguf"
        done = subprocess.run([penstock, "calibrate", place / "desk", place / "tiny.gguf", target, "--home", tmp_path / "home", "-q", *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr, target
    return run


def test_a_file_that_runs(calibrate, penstock, place, tmp_path):
    code, out, errors, path = calibrate("--bits", "6.5", "--json", "--general", str(place / "general.txt"))
    assert code == 0, errors
    report = json.loads(out)
    assert report["bits"] <= 6.5 and report["bytes"] * 8 / report["elements"] == pytest.approx(report["bits"])
    assert sum(report["matrices"].values()) == 1 + 7 * gguf_file.LAYERS
    for key in ("held_out", "general"):
        assert 0 < report[key]["all"] < 1
    assert report["held_out"]["n_answers"] < report["held_out"]["n_all"]
    shown = json.loads(subprocess.run([penstock, "inspect", path, "--json"], capture_output=True, text=True, check=True).stdout)
    assert shown["runs"]
    assert sum(t["bytes"] for t in shown["types"]) == report["bytes"] and shown["n_params"] == report["elements"]  # norms and head are counted
    told = subprocess.run([penstock, "run", path, "where is my parcel", "-n", "4", "--home", tmp_path / "home"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_more_bits_are_nearer(calibrate, tmp_path):
    found = [json.loads(calibrate("--bits", bits, "--json", out=tmp_path / bits)[1])["held_out"]["all"] for bits in ("5.6", "8.9")]
    assert found[1] < found[0] / 10


def test_threads_leave_no_trace(calibrate, tmp_path):
    files = []
    for threads in ("1", "2"):
        code, _, errors, path = calibrate("--bits", "6.5", "--threads", threads, out=tmp_path / threads)
        assert code == 0, errors
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_scales_learn(calibrate, tmp_path):
    """End to end from the float model: what both say of answers comes nearer, by the same bytes on any number of threads, and by other scales only."""
    files, reports = [], []
    for threads, learned in (("1", "12"), ("2", "12"), ("2", "0")):
        code, out, errors, path = calibrate("--bits", "5.6", "--learn-items", learned, "--rate", "0.01", "--threads", threads, "--json", out=tmp_path / (threads + learned))
        assert code == 0, errors
        files.append(path.read_bytes())
        reports.append(json.loads(out))
    assert files[0] == files[1] and files[0] != files[2] and len(files[0]) == len(files[2])
    assert reports[0]["search_after_learning"] < reports[0]["search_before_learning"] and reports[2]["search_after_learning"] is None
    assert reports[0]["matrices"] == reports[2]["matrices"]
    code, _, errors, path = calibrate("--learn-items", "12", "--rate", "2")
    assert code in (1, 2) and "rate" in errors and not path.exists()


def test_refusals(calibrate, place):
    code, _, errors, path = calibrate("--bits", "3")
    assert code in (1, 2) and "the smallest types take" in errors and not path.exists()
    code, _, errors, path = calibrate("--bits", "6.5", "--at-once", "8")
    assert code in (1, 2) and "more than the 8" in errors and "items of the part search" in errors and not path.exists()  # the longest of all parts
    needed = errors.split("--at-once ")[1].split()[0]
    assert calibrate("--bits", "6.5", "--at-once", str(int(needed) - 1))[0] == 2 and not path.exists()
    assert calibrate("--bits", "6.5", "--at-once", needed)[0] == 0 and path.exists()
    path.unlink()
    path.write_text("mine")
    code, _, errors, _ = calibrate()
    assert code in (1, 2) and "--force" in errors and path.read_text() == "mine"
    code, _, errors, _ = calibrate("--adapter", "/no/such/adapter", "--force")
    assert code in (1, 2) and "adapter" in errors and path.read_text() == "mine"


@pytest.mark.parametrize("options, says", [
    (("--on", "general.txt", "--items", "4"), "items"), (("--on", "general.txt", "--learn-items", "4"), "learn-items"), (("--on", "general.txt", "--search-items", "4"), "search-items"),
    (("--on", "general.txt", "--rate", "0.01"), "rate"), (("--general-tokens", "99"), "--general"), (("--on-tokens", "99"), "--on"),
])
def test_options_that_would_do_nothing_are_refused(calibrate, place, options, says):
    code, out, errors, path = calibrate(*(str(place / o) if o.endswith(".txt") else o for o in options))
    assert code == 2 and out == "" and errors.count("\n") == 1 and says in errors and not path.exists()


def test_files_to_compare(calibrate, penstock, place, tmp_path):
    """They are looked at before the work; one that goes away meanwhile takes nothing from the report."""
    (tmp_path / "junk.gguf").write_bytes(b"junk")
    (tmp_path / "wide.gguf").write_bytes(gguf_file.build(gguf_file.keys(tokenizer__ggml__tokens=gguf_file.keys()["tokenizer.ggml.tokens"] + ["cd"], tokenizer__ggml__token_type=[1] * 256 + [3, 3, 1, 1]),
                                                         {**gguf_file.tensors(), "token_embd.weight": (gguf_file.EMBD, 260)})[1])
    (tmp_path / "other.gguf").write_bytes(gguf_file.build()[1])
    for name in ("none.gguf", "junk.gguf", "wide.gguf"):
        code, out, errors, path = calibrate("--compare", str(tmp_path / "other.gguf"), "--compare", str(tmp_path / name), "--traffic-out", str(tmp_path / "seen.txt"))
        assert code in (1, 2) and out == "" and name in errors and errors.count("\n") == 1 and not path.exists() and not (tmp_path / "seen.txt").exists(), errors
    code, out, errors, path = calibrate("--compare", str(tmp_path / "other.gguf"), "--bits", "6.5", "--json")
    assert code == 0, errors
    (compared,) = json.loads(out)["compared"]
    assert compared["path"] == str(tmp_path / "other.gguf") and abs(compared["held_out"]["all"]) < 1e-6  # the very weights
    run = subprocess.Popen([penstock, "calibrate", place / "desk", place / "tiny.gguf", tmp_path / "late.gguf", "--home", tmp_path / "home", "-q", "--bits", "6.5", "--json", "--compare", tmp_path / "other.gguf",
                            "--compare", place / "tiny.gguf"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not list((tmp_path / "home" / "tune").glob("*")):
        time.sleep(0.001)
    (tmp_path / "other.gguf").unlink()
    out, errors = run.communicate(timeout=120)
    report = json.loads(out)
    assert run.returncode in (1, 2) and "other.gguf" in errors and errors.count("\n") == 1
    assert report["held_out"]["all"] > 0 and report["compared"][0]["held_out"] is None and report["compared"][1]["held_out"]["n_all"] > 0 and (tmp_path / "late.gguf").exists()
