"""--budget-usd: what evals, searches and teachers pay a provider, a second server here, is what was allowed at most, and stands in the books."""
import json
import os
import signal
import sqlite3
import subprocess
import time

import pytest

from test_turn import TURN, add_records, folder, texts  # noqa: F401


def let_go(folder, objective="cost"):  # noqa: F811
    """Its texts may leave this machine."""
    workload = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    workload["privacy"]["remote"] = True
    workload["goal"]["objective"] = objective
    (folder / "workload.json").write_text(json.dumps(workload), encoding="utf-8")
    return folder


@pytest.fixture
def letters(folder):  # noqa: F811
    return let_go(folder)


@pytest.fixture
def provider(serve, cli, smollm2, model, tmp_path):
    (tmp_path / "far").mkdir()
    far = serve("--model", smollm2, home=tmp_path / "far")
    cli("settings", "provider", "far", far.url + "/v1")
    cli("settings", "price", "far", model, "--input", "10", "--output", "20")  # of a million tokens
    return f"far/{model}"


@pytest.fixture
def wise(cli, serve, penstock, letters, provider, smollm2, tmp_path):
    """A second provider knows the task: a classifier of the same letters answers as its model "letters"."""
    far = {**os.environ, "PENSTOCK_HOME": str(tmp_path / "far")}
    subprocess.run([penstock, "optimize", str(letters), "-m", smollm2, "--budget-minutes", "0.1", "--max-items", "60", "--promote", "--quiet"], env=far, check=True, capture_output=True)
    none = subprocess.run([penstock, "key", "list", "--runs", "--json"], env=far, check=True, capture_output=True, text=True)
    assert json.loads(none.stdout) == []  # nobody to pay there
    cli("settings", "provider", "wise", serve("--plan", "letters", home=tmp_path / "far").url + "/v1")
    cli("settings", "price", "wise", "letters", "--input", "10", "--output", "20")
    return "wise/letters"


def accounts(cli):
    """What runs with a budget may spend, have spent, and whether anything is open, by name."""
    assert all(k["hint"] for k in json.loads(cli("key", "list", "--json").stdout))  # a list of keys shows none of them
    rows = [k for k in json.loads(cli("key", "list", "--runs", "--json").stdout) if not k["hint"]]
    assert all(r["name"].startswith("run ") and r["overruns"] == 0 for r in rows)
    return {r["name"]: (float(r["limit_total_usd"]), float(r["spent_total_usd"]), r["open_reservations"]) for r in rows}


def test_an_eval_ends_with_its_money_and_goes_on_with_more(cli, letters, provider):
    ask = ("eval", letters, "--target", provider, "--limit", 40, "--quiet")
    refused = cli(*ask, "--budget-usd", "0.0145", ok=False)
    assert refused.returncode == 3 and refused.stderr.count("\n") == 1
    assert "a larger --budget-usd goes on" in refused.stderr and "of the total limit of $0.0145 only $" in refused.stderr
    ((name, (limit, spent, is_open)),) = accounts(cli).items()
    assert limit == 0.0145 and is_open == 0 and 0 < spent <= limit
    done = json.loads(cli(*ask, "--budget-usd", "5", "--json", ok=False).stdout)  # the same run's account
    assert done["targets"][0]["failed"] == 0
    ((again, (limit, total, is_open)),) = accounts(cli).items()
    assert again == name and limit == 5 and is_open == 0 and spent < total <= limit
    for bad in ("0", "-1", "much"):
        refused = cli(*ask, "--budget-usd", bad, ok=False)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--budget-usd" in refused.stderr


def test_what_a_killed_eval_reserved_counts(cli, penstock, home, letters, provider):
    ask = [penstock, "eval", str(letters), "--target", provider, "--quiet", "--budget-usd", "0.05"]
    one = subprocess.Popen(ask, env={**os.environ, "PENSTOCK_HOME": str(home)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(spent > 0 for _, spent, _ in accounts(cli).values()):
        assert time.monotonic() < deadline and one.poll() is None
    one.send_signal(signal.SIGKILL)
    one.wait()
    cli(*ask[1:], ok=False)
    ((_, (limit, spent, is_open)),) = accounts(cli).items()
    with sqlite3.connect(home / "penstock.db") as db:
        rows = db.execute("SELECT state, reserved_nusd, actual_nusd FROM ledger").fetchall()
    lost = [(reserved, actual) for state, reserved, actual in rows if state == 3]
    assert lost and all(reserved == actual for reserved, actual in lost)  # what was reserved then counts for good
    assert is_open == 0 and spent <= limit and abs(sum(actual for _, _, actual in rows) / 1e9 - spent) < 1e-9


@pytest.mark.full
def test_a_search_plans_with_its_money(cli, provider, smollm2, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t, "answer": {"kind": k}}) + "\n" for t, k in texts(1, 300)), encoding="utf-8")
    cli("import", tmp_path / "rows.jsonl", tmp_path / "kinds")
    found = cli("optimize", let_go(tmp_path / "kinds", "quality"), "--model", smollm2, "--budget-minutes", 0.5, "--max-items", 60, "--budget-usd", "0.2", "--json", "--quiet", ok=False)
    assert found.returncode in (0, 1, 3), found.stderr
    spent = json.loads(found.stdout)["evidence"]["spent"]
    ((_, (limit, total, is_open)),) = accounts(cli).items()
    assert limit == 0.2 and is_open == 0 and 0 < total <= limit
    assert spent["providers_limit_nusd"] == 200000000 and abs(spent["providers_nusd"] / 1e9 - total) < 1e-9


def dislike(cli, letters, tmp_path):
    """Of 220 records 60; their ids."""
    add_records(cli, letters, tmp_path)
    ids = [r["completion_id"] for r in json.loads(cli("data", "list", "letters", "--limit", 60, "--json").stdout)]
    for name in ids:
        cli("feedback", name, "--thumbs", "down")
    return ids


@pytest.mark.full
def test_a_teacher_teaches_as_far_as_money_goes(cli, letters, wise, smollm2, tmp_path):
    dislike(cli, letters, tmp_path)
    tune = ("tune", letters, "--model", smollm2, "--steps", 1, "--batch", 1, "--held-out", 0, "--max-examples", 8, "--json", "--quiet")
    taught = json.loads(cli(*tune, "--teacher", wise, "--budget-usd", "0.015").stdout)["teacher"]
    ((_, (limit, total, is_open)),) = accounts(cli).items()
    assert taught["broke"] and taught["asked"] > 8 and is_open == 0 and 0 < total <= limit == 0.015
    assert 0 < taught["usable"] < taught["asked"] and taught["failed"] == 0
    assert abs(taught["nusd"] / 1e9 - total) < 1e-9
    nothing = cli(*tune, "--teacher", wise, "--budget-usd", "0.001", "--name", "other", ok=False)
    assert nothing.returncode == 1 and "of the total limit of $0.001 only" in nothing.stderr and nothing.stderr.count("\n") == 1
    assert cli(*tune, "--budget-usd", "1", ok=False).returncode == 2  # there is nobody to pay


@pytest.mark.full
def test_a_turn_has_a_teacher(cli, letters, wise, smollm2, tmp_path):
    disliked = dislike(cli, letters, tmp_path)
    done = json.loads(cli("turn", letters, "-m", smollm2, "--teacher", wise, "--budget-usd", "1", *TURN, ok=False).stdout)
    taught = done["adapter"]["teacher"]
    assert taught["asked"] > 8 and taught["usable"] == taught["asked"] and taught["failed"] == 0 and not taught["broke"]
    assert done["adapter"]["examples"] + done["adapter"]["held_out"] > done["data"]["added"]
    rows = list(accounts(cli).values())  # of the teacher and of the search: half of the money each
    assert [limit for limit, _, _ in rows] == [0.5, 0.5] and not any(is_open for _, _, is_open in rows)
    spent = taught["nusd"] + done["spent"]["providers_nusd"]
    assert done["budget_nusd"] == 10**9 and taught["nusd"] > 0 and abs(spent / 1e9 - sum(total for _, total, _ in rows)) < 1e-9
    adapter = done["adapter"]["name"]
    assert not next(a for a in json.loads(cli("adapters", "list", "--json").stdout) if a["name"] == adapter)["stale"]
    for name in disliked:  # what the teacher answered reaches the adapter too
        cli("data", "delete", "--id", name)
    assert next(a for a in json.loads(cli("adapters", "list", "--json").stdout) if a["name"] == adapter)["stale"]
    unknown = cli("turn", letters, "-m", smollm2, "--teacher", "nobody/x", *TURN, ok=False)
    assert unknown.returncode == 2 and unknown.stderr.count("\n") == 1
