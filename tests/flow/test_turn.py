"""penstock turn: records to an adapter to a plan, which must prove itself; and what it does when it is killed."""
import json
import os
import random
import signal
import subprocess
import time

import pytest

KINDS = {"refund": ["want my money back for {}", "please refund the {}", "the {} should be paid back to me", "return the amount for {}"],
         "delivery": ["where is the {} that I ordered", "the {} has not arrived", "when does my {} come", "track the parcel with the {}"],
         "praise": ["the {} is wonderful", "I love this {}", "thank you for the lovely {}", "the {} made my day"]}
THINGS = "lamp kettle scarf teapot carpet mirror basket candle jacket wallet clock pillow blanket bottle notebook guitar camera printer".split()
COLOURS = "red green blue amber violet silver golden copper black white olive crimson".split()


def texts(seed, n):
    draw = random.Random(seed)
    for _ in range(n):
        kind = draw.choice(sorted(KINDS))
        yield draw.choice(KINDS[kind]).format(f"{draw.choice(COLOURS)} {draw.choice(THINGS)} number {draw.randrange(10000)}"), kind


@pytest.fixture
def folder(cli, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in texts(1, 500)), encoding="utf-8")
    cli("import", path, tmp_path / "letters")
    return tmp_path / "letters"


def judging(folder):
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(i["messages"][-1]["content"], i["reference"]) for i in items if i["part"] == "verify"]


def add_records(cli, folder, tmp_path, wrong=False):
    """Records of users: fresh ones, and 20 that are items which judge."""
    leaked = judging(folder)[:20]
    labels = sorted(KINDS)
    rows = [(t, labels[(labels.index(k) + 1) % 3] if wrong else k) for t, k in texts(2, 200)]
    rows += [(t, r if isinstance(r, str) else next(iter(r.values()))) for t, r in leaked]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": k}]}) + "\n" for t, k in rows), encoding="utf-8")
    cli("data", "import", "letters", path, "--train", "yes")
    return len(leaked)


TURN = ["--tune-minutes", 0.1, "--budget-minutes", 0.1, "--max-items", 60, "--json", "--quiet"]


@pytest.mark.full
def test_records_become_examples_and_a_plan_is_promoted(cli, folder, tmp_path, smollm2):
    n_leaked = add_records(cli, folder, tmp_path)
    done = json.loads(cli("turn", folder, "--model", smollm2, *TURN).stdout)
    data = done["data"]
    assert data["records"] == 200 + n_leaked and 0 < data["added"] <= 200
    assert data["left_out"].get("contaminated", 0) + data["near_to_items"] >= n_leaked
    held = {text for text, _ in judging(folder)}
    added = [json.loads(line) for line in open(os.path.join(data["folder"], "items.jsonl"), encoding="utf-8")]
    assert not [i for i in added if i["id"].startswith("record-") and i["messages"][-1]["content"] in held]
    assert done["preferences"]["why"].startswith("not enough preferences: 0 of 24 corrections") and "steps" not in done["preferences"]
    assert done["adapter"]["steps"] >= 1 and done["adapter"]["examples"] > data["added"] / 2
    assert done["gate"]["promoted"] and done["plan"]["verdict"] == "found"
    assert cli("explain", done["plan"]["hash"]).returncode == 0
    assert done["adapter"]["name"] in cli("data", "show", data["data_set"], "--json").stdout  # the set knows what was made of it
    # The same again: the plan in force is the best there is, and stays.
    again = json.loads(cli("turn", folder, "--model", smollm2, *TURN, ok=False).stdout)
    assert again["run"] != done["run"] and not again["gate"]["promoted"]


@pytest.mark.full
def test_poisoned_records_are_not_served(cli, folder, tmp_path, smollm2):
    """A good plan is in force; then records come whose answers are all wrong."""
    first = json.loads(cli("optimize", folder, "--model", smollm2, "--budget-minutes", 0.5, "--max-items", 60, "--promote", "--quiet", "--json").stdout)
    add_records(cli, folder, tmp_path, wrong=True)
    report = json.loads(cli("turn", folder, "--model", smollm2, *TURN, ok=False).stdout)
    served = cli("explain", "letters").stdout
    assert report["adapter"]["name"] and report["adapter"]["name"] not in served, (first, report["gate"], served)


@pytest.mark.full
def test_a_killed_turn_goes_on(cli, penstock, folder, smollm2, home):
    command = [penstock, "turn", str(folder), "--model", smollm2, *map(str, TURN)]
    environment = {**os.environ, "PENSTOCK_HOME": str(home)}
    for seconds in (2, 6, 10):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = json.loads(cli(*command[1:], ok=False).stdout)
    assert done["run"] == 1 and done["plan"]["verdict"] in ("found", "none", "not_enough_data")
    assert json.loads(cli("adapters", "list", "--json").stdout)
