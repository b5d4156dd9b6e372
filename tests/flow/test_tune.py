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

FURTHER = ("--batch", 4, "--minutes", 1, "--held-out", 0.2)  # from an adapter, whose rank is its own
STEPS = (*FURTHER, "--rank", 4)


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
    looks = result["evaluations"]
    assert looks[-1]["step"] == 12 and all(8 <= e["asked"] <= result["held_out"] and 0 <= e["right"] <= e["asked"] for e in looks)
    assert {"step": result["best_step"], "held_out_loss": result["held_out_loss"], **result["score"]} in looks
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


def test_a_name_that_is_taken(cli, folder, tiny, tmp_path, home):
    """It is refused before the work, and leaves nothing; so is an adapter of a model of the same name with other weights."""
    cli("tune", folder, "--model", tiny, "--steps", 2, *STEPS, "--name", "one")
    for seed in (2, 3):  # two adapters of the same texts: a name that is another's leaves no file
        cli("tune", folder, "--model", tiny, "--steps", 2, *STEPS, "--seed", seed)
    files = sorted((home / "files").iterdir())
    assert {f.name for f in files} == {a["file"] for a in json.loads(cli("adapters", "--json").stdout)} and len(files) == 3
    for other in (("--seed", 2), ()):
        refused = cli("tune", folder, "--model", tiny, "--steps", 100000, *STEPS, "--name", "one", *other, ok=False)
        assert refused.returncode == 2 and "is there already" in refused.stderr
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf_file.build(empty=True)[1])
    assert sorted((home / "files").iterdir()) == files
    refused = cli("tune", folder, "--model", other, "--from", "one", "--steps", 2, *FURTHER, ok=False)
    assert refused.returncode == 2 and "is an adapter of" in refused.stderr


def test_answers_in_codes(cli, folder, tiny):
    """Labels of several tokens become one or two; what is served, graded and counted goes by the codes."""
    plain = json.loads(cli("tune", folder, "--model", tiny, "--steps", 2, *STEPS, "--json").stdout)
    done = json.loads(cli("tune", folder, "--model", tiny, "--steps", 2, *STEPS, "--codes", 8, "--name", "short", "--json").stdout)
    assert "codes" not in plain and 0 < done["codes"] <= 8
    assert done["plain_answer_tokens"] == plain["answer_tokens"] > 1.5 * done["answer_tokens"]
    assert "codes" in cli("adapters").stdout
    assert done["score"]["asked"] == plain["score"]["asked"]
    measured = json.loads(cli("eval", folder, "--target", done["plan_hash"], "--json", ok=False).stdout)["targets"][0]
    assert measured["n"] and measured.get("failed", 0) == 0
    # The same texts give the same table and adapter; going on from it keeps its codes, a teacher's thoughts are plain.
    again = json.loads(cli("tune", folder, "--model", tiny, "--steps", 2, *STEPS, "--codes", 8, "--name", "again", "--json").stdout)
    assert all(again[member] == done[member] for member in ("codes", "answer_tokens", "held_out_loss", "score"))
    on = json.loads(cli("tune", folder, "--model", tiny, "--steps", 2, *FURTHER, "--from", "short", "--name", "on", "--json").stdout)
    assert on["codes"] == done["codes"] and on["answer_tokens"] == done["answer_tokens"]
    refused = cli("tune", folder, "--model", tiny, "--steps", 2, *STEPS, "--codes", 8, "--distill", tiny, ok=False)
    assert refused.returncode == 2 and "codes" in refused.stderr


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


def test_feedback_and_a_teacher(cli, folder, tiny, tmp_path):
    """Corrections are preferred to what they correct; where an answer was only disliked, a plan that may answer with labels alone is the teacher."""
    first = json.loads(cli("tune", folder, "--model", tiny, "--steps", 4, *STEPS, "--name", "first", "--json").stdout)
    words = "otter maple copper glider cherry falcon silver hammer peach robin brass wrench melon raven tin saw fig wren iron plane".split()
    rows = [{"messages": [{"role": "user", "content": f"{w} {i * 17} seen near {words[i - 3]} {i * 29}"}, {"role": "assistant", "content": "thin"}]} for i, w in enumerate(words)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    cli("data", "import", "things", tmp_path / "said.jsonl", "--train", "yes")
    ids = [r["completion_id"] for r in json.loads(cli("data", "list", "things", "--limit", 100, "--json").stdout)]
    for i, name in enumerate(ids):
        cli("feedback", name, *(("--correction", "thick") if i < 14 else ("--thumbs", "down")))
    dpo = json.loads(cli("tune", folder, "--model", tiny, "--objective", "dpo", "--from", "first", "--steps", 4, *FURTHER, "--json").stdout)
    assert dpo["objective"] == "dpo" and dpo["examples"] + dpo["held_out"] == 14
    assert 0 <= dpo["reward_accuracy"] <= 1 and abs(dpo["held_out_loss_before"] - 0.6931) < 1e-3
    assert dpo["adapter"] in cli("adapters").stdout
    taught = json.loads(cli("tune", folder, "--model", tiny, "--teacher", first["plan_hash"], "--steps", 4, *STEPS, "--json").stdout)
    assert taught["teacher"] == {"asked": 6, "known": 0, "usable": 6, "failed": 0, "nusd": 0, "broke": False}
    assert taught["examples"] == first["examples"] + 6


def test_what_cannot_be_preferred(cli, folder, tiny, tmp_path):
    refused = cli("tune", folder, "--model", tiny, "--objective", "ppo", ok=False)
    assert refused.returncode == 2 and "none of sft, dpo and kto" in refused.stderr
    refused = cli("tune", folder, "--model", tiny, "--objective", "kto", ok=False)
    assert refused.returncode == 3 and "no record that may be trained on" in refused.stderr
    rows = [{"messages": [{"role": "user", "content": f"number {i * 31} of {i}"}, {"role": "assistant", "content": "thin"}]} for i in range(20)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    cli("data", "import", "things", tmp_path / "said.jsonl", "--train", "yes")
    refused = cli("tune", folder, "--model", tiny, "--objective", "dpo", ok=False)
    assert refused.returncode == 3 and "8 at least, and 0 of 20 records have one" in refused.stderr
    refused = cli("tune", folder, "--model", tiny, "--objective", "dpo", "--teacher", f"model:{tiny}", ok=False)
    assert refused.returncode == 2 and "goes with sft alone" in refused.stderr
    refused = cli("tune", folder, "--model", tiny, "--from", "nobody", ok=False)
    assert refused.returncode == 2 and "nobody" in refused.stderr


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
