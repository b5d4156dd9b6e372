"""Tuning as a person does it: a workload's examples become an adapter with a name and a plan that serves it; interrupted, it goes on; what cannot be is said."""
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "faults"))
import gguf_file  # noqa: E402

STEPS = ("--batch", 4, "--minutes", 1, "--held-out", 0.2, "--rank", 4)


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(gguf_file.build()[1])
    return tmp_path / "tiny.gguf"


@pytest.fixture
def folder(cli, tmp_path):
    names = ["apple", "heron", "zinc", "plane", "quince", "swift", "nickel", "chisel", "plum", "crane", "cobalt", "drill"]
    rows = [{"text": f"{a} {i} {b} {i * 7}", "label": ["thin", "thick"][(i + k) % 2]} for i, a in enumerate(names) for k, b in enumerate(names) if a != b]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    cli("import", path, tmp_path / "things")
    return tmp_path / "things"


def test_an_adapter_and_its_plan(cli, folder, tiny, tmp_path, home):
    done = cli("tune", folder, "--model", tiny, "--steps", 12, *STEPS, "--json", "-o", tmp_path / "plan.json")
    result = json.loads(done.stdout)
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert result["steps"] == 12 and result["held_out"] > 0
    assert result["examples"] + result["held_out"] == sum(i["part"] == "examples" for i in items) < len(items)
    assert result["held_out_loss"] < result["held_out_loss_before"]
    root = result["plan"]["root"]
    assert root["adapter"] == result["file"] and (home / "files" / result["file"]).is_file()
    assert root["constraint"] == "labels" and root["layout"] == "plain" and not root["prompt"].get("instruction")
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8")) == result["plan"]
    assert result["adapter"] in cli("adapters").stdout
    measured = json.loads(cli("eval", folder, "--target", result["plan_hash"], "--json", ok=False).stdout)
    assert measured["targets"][0]["n"] == sum(i["part"] == "verify" for i in items)
    refused = cli("eval", folder, "--target", result["plan_hash"], "--part", "examples", ok=False)
    assert refused.returncode == 2 and "adapter was trained on the part examples" in refused.stderr
    assert not list((home / "tune").iterdir())


def test_interrupted_it_goes_on(cli, penstock, folder, tiny, tmp_path):
    command = ["tune", folder, "--model", tiny, "--steps", 150, *STEPS, "--name", "one", "--json"]
    other = tmp_path / "other"
    n_broken = 0
    for delay in (1.0, 1.5, 2.0):
        process = subprocess.Popen([penstock, *map(str, command), "--home", str(other)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        n_broken += "was stopped after" in process.communicate(timeout=300)[1]
    broken = json.loads(cli(*command, "--home", other, ok=False).stdout or "{}")
    whole = json.loads(cli(*command).stdout)
    if "file" not in broken: # one of the sessions came to the end
        broken = {"file": json.loads(cli("adapters", "--json", "--home", other).stdout)[0]["file"]}
    assert broken["file"] == whole["file"]


def test_what_cannot_be(cli, folder, tiny, tmp_path):
    refused = cli("tune", folder, "--model", tiny, "--prompt", "flowery", ok=False)
    assert refused.returncode == 2 and 'no prompt "flowery"' in refused.stderr
    refused = cli("tune", folder, "--model", tiny, "--name", "a/b", ok=False)
    assert refused.returncode == 2 and "name" in refused.stderr
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [i for i in items if i["part"] != "examples"]
    (folder / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in kept), encoding="utf-8")
    refused = cli("tune", folder, "--model", tiny, ok=False)
    assert refused.returncode == 3 and "too few" in refused.stderr
