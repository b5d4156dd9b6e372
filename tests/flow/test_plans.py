"""penstock plans: what is in force and how it came there, another plan in its place and back again under a running server, and what is refused."""
import json
import sqlite3

import openai
import pytest

from test_adapters import HELLO, adapter_bytes, all_linear, gguf_file


def plan_file(path, model, workload="desk", **more):
    node = {"op": "local", "engine": "e", "max_tokens": 24, "prompt": {"name": "p", "instruction": "Sort."}, **more}
    path.write_text(json.dumps({"schema": 1, "workload": workload, "engines": {"e": {"model": str(model)}}, "root": node}))
    return path


def put_in_force(serve, *files):
    """Stored and in force, as a person does it."""
    assert serve(*(word for file in files for word in ("--plan", file))).stop() == 0


@pytest.fixture
def plans(cli, serve, tmp_path):
    """Two plans of the workload desk, the tuned one in force after the plain one; its adapter was made of ann's records. {name: hash}."""
    model = tmp_path / "tiny.gguf"
    model.write_bytes(gguf_file.build()[1])
    (tmp_path / "orders.gguf").write_bytes(adapter_bytes(all_linear()))
    rows = [{"messages": [{"role": "user", "content": f"Where is parcel {i * i} of the {word} order?"}, {"role": "assistant", "content": word}]}
            for i, word in enumerate("lamp kettle scarf teapot carpet mirror basket candle jacket wallet clock pillow".split())]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli("data", "import", "desk", tmp_path / "rows.jsonl", "--subject", "ann")
    data_set = json.loads(cli("data", "curate", "desk", "--skip-suspects", "--json").stdout)["data_set"]
    cli("adapters", "add", "orders", tmp_path / "orders.gguf", "--model", model, "--workload", "desk", "--data", data_set)
    (adapter,) = json.loads(cli("adapters", "--json").stdout)
    hashes = {}
    for name, more in (("plain", {}), ("tuned", {"adapter": adapter["file"]})):
        put_in_force(serve, plan_file(tmp_path / f"{name}.json", model, **more))
        (row,) = json.loads(cli("plans", "--json").stdout)
        hashes[name] = row["in_force"]["plan"]
    return hashes


def in_force(cli, workload="desk"):
    (row,) = [row for row in json.loads(cli("plans", "list", "--json").stdout) if row["workload"] == workload]
    return row["in_force"]["plan"]


def history(cli, workload="desk"):
    return json.loads(cli("plans", "history", workload, "--json").stdout)


def change(cli, *arguments):
    done = json.loads(cli("plans", *arguments, "--json").stdout)
    assert done["workload"] == "desk" and done["changed"] == (done["plan"] != done["before"])
    return done["before"], done["plan"]


def test_back_and_forth_under_a_running_server(cli, serve, plans, tmp_path):
    plain, tuned = plans["plain"], plans["tuned"]
    one = serve()  # no --plan: what is in force is what the store says
    client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0, timeout=60)

    def answer():
        return client.chat.completions.create(model="desk", messages=HELLO).choices[0].message.content

    by_tuned = answer()
    assert change(cli, "rollback", "desk") == (tuned, plain)
    by_plain = answer()
    assert by_plain != by_tuned
    assert change(cli, "promote", "desk", tuned[:8]) == (plain, tuned) and answer() == by_tuned
    assert change(cli, "promote", "desk", tuned) == (tuned, tuned)  # nothing to change, and nothing is noted
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "workload.json").write_text('{"name": "desk", "schema": 1}')
    assert change(cli, "rollback", tmp_path / "folder") == (tuned, plain) and answer() == by_plain
    events = history(cli)
    assert [(e["event"], e["plan"]) for e in events] == [("roll back", plain), ("assign", tuned), ("roll back", plain), ("assign", tuned), ("assign", plain)]
    assert [e["note"] for e in events][1:4] == ["penstock plans promote", "penstock plans rollback", "penstock serve --plan"]
    assert [e["id"] for e in events] == sorted((e["id"] for e in events), reverse=True) and {e["role"] for e in events} == {"in force"}
    none = cli("plans", "rollback", "desk", ok=False)
    assert none.returncode == 2 and none.stderr.count("\n") == 1 and "before the present one" in none.stderr and "penstock plans promote" in none.stderr
    assert history(cli) == events and answer() == by_plain


def test_what_a_person_reads(cli, plans):
    head, row = cli("plans").stdout.splitlines()
    assert head.startswith("WORKLOAD") and plans["tuned"][:12] in row and row.endswith("tiny.gguf:orders") and "stale" not in row
    said = cli("plans", "rollback", "desk").stdout
    assert plans["plain"][:12] in said and plans["tuned"][:12] in said and "next request" in said
    assert cli("plans", "list").stdout.splitlines()[1].endswith("tiny.gguf")
    told = cli("plans", "history", "desk").stdout.splitlines()
    assert len(told) == 4 and "roll back" in told[1] and plans["plain"][:12] in told[1] and plans["plain"][:12] in told[3]


def test_roles_of_several_workloads(cli, serve, plans, home, tmp_path):
    before = json.loads(cli("plans", "--json").stdout)[0]["in_force"]
    put_in_force(serve, plan_file(tmp_path / "b.json", tmp_path / "tiny.gguf", "billing"))
    with sqlite3.connect(home / "penstock.db") as db:  # as a search that compares plans in the shadow would leave it, and one that found the same plan again
        db.execute("INSERT INTO plan_roles(workload, role, hash) VALUES('desk', 1, ?)", [plans["plain"]])
        db.execute("INSERT INTO plan_history(time_ms, workload, role, hash, event, note) VALUES(7000, 'desk', 1, ?, 'assign', NULL)", [plans["plain"]])
        db.execute("INSERT INTO plan_history(time_ms, workload, role, hash, event, note) VALUES(8000, 'desk', 0, ?, 'assign', 'optimize')", [plans["tuned"]])
    billing, desk = json.loads(cli("plans", "--json").stdout)
    assert (billing["workload"], billing["shadow"], desk["workload"]) == ("billing", None, "desk")
    assert desk["in_force"] == before and before["description"] == "tiny.gguf:orders" and before["stale_adapter"] is None
    assert (desk["shadow"]["plan"], desk["shadow"]["since_ms"], desk["shadow"]["note"]) == (plans["plain"], 7000, None)
    assert [e["role"] for e in history(cli)] == ["in force", "shadow", "in force", "in force"]
    assert cli("plans").stdout.count("\n") == 4


def test_records_that_were_erased(cli, plans):
    plain, tuned = plans["plain"], plans["tuned"]
    cli("data", "delete", "--subject", "ann")
    (row,) = json.loads(cli("plans", "--json").stdout)
    assert row["in_force"]["stale_adapter"] == "orders" and "stale" in cli("plans").stdout
    assert change(cli, "rollback", "desk") == (tuned, plain)  # away from it nothing is in the way
    events = history(cli)
    refused = cli("plans", "promote", "desk", tuned, ok=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "orders" in refused.stderr and "--force" in refused.stderr
    assert history(cli) == events and in_force(cli) == plain
    assert change(cli, "promote", "desk", tuned, "--force") == (plain, tuned)
    assert change(cli, "promote", "desk", tuned) == (tuned, tuned)  # is there already: nothing is refused, and nothing noted
    assert change(cli, "promote", "desk", plain) == (tuned, plain)
    refused = cli("plans", "rollback", "desk", ok=False)
    assert refused.returncode == 2 and "orders" in refused.stderr and in_force(cli) == plain
    assert change(cli, "rollback", "desk", "-f") == (plain, tuned)
    assert [e["note"] for e in history(cli)[:3]] == ["penstock plans rollback --force", "penstock plans promote", "penstock plans promote --force"]


def test_a_plan_of_another_workload(cli, serve, plans, tmp_path):
    put_in_force(serve, plan_file(tmp_path / "b.json", tmp_path / "tiny.gguf", "billing"))
    other = in_force(cli, "billing")
    refused = cli("plans", "promote", "desk", other, ok=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and '"billing"' in refused.stderr and '"desk"' in refused.stderr
    assert in_force(cli) == plans["tuned"]
    assert change(cli, "promote", "desk", other, "--force") == (plans["tuned"], other)


def test_bad_arguments(cli, plans, tmp_path):
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "workload.json").write_text('{"name": 7}')
    cases = {"unknown action": ("demote", "desk"), "plans promote WORKLOAD HASH": ("promote", "desk"), "plans history WORKLOAD": ("history",), "plans list": ("list", "desk"),
             "lower-case hex": ("promote", "desk", "1234567"), "is kept here": ("promote", "desk", "0" * 16), "no folder with a workload.json": ("history", tmp_path / "none"),
             '"name"': ("rollback", tmp_path / "nameless"), "is empty": ("rollback", ""), "ever in force": ("history", "desc"), "before the present one": ("rollback", "desc"),
             "--force": ("history", "desk", "--force"), "unexpected": ("promote", "desk", plans["plain"], "more")}
    events = history(cli)
    for word, arguments in cases.items():
        done = cli("plans", *arguments, ok=False)
        assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") <= 2, (word, done.stderr)
    assert history(cli) == events


def test_nothing_yet(cli):
    assert json.loads(cli("plans", "--json").stdout) == [] and "optimize" in cli("plans").stdout
    assert cli("plans", "--help").stdout.count("Example") == 1
