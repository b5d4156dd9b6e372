"""`penstock import` and `penstock eval` as a person uses them: folders, verdicts, resume after a kill, and mistakes."""
import json
import os
import signal
import subprocess
import time

import pytest

PARTS = ("examples", "search", "verify", "sealed")


def run(penstock, *arguments, home=None, timeout=300):
    environment = dict(os.environ, PENSTOCK_HOME=str(home)) if home else None
    done = subprocess.run([penstock, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, timeout=timeout)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A file of 400 short messages with three labels, some of them near-duplicates."""
    path = tmp_path_factory.mktemp("source") / "desk.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for i in range(400):
            label = ("refund", "delivery", "other_matter")[i % 3]
            twin = i // 2 * 2 if i % 20 < 4 else i  # pairs that differ in punctuation alone
            label = ("refund", "delivery", "other_matter")[twin % 3]
            text = " ".join(f"w{(twin * 7 + k * k * 13) % 997}" for k in range(6)) + f" about {label}" + "!" * (i % 2)
            out.write(json.dumps({"text": text, "label": label}) + "\n")
    return path


def test_import_is_a_function_of_file_and_seed(penstock, source, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, _, err = run(penstock, "import", source, tmp_path / name, "--name", "desk", "--seed", seed)
        assert code == 0, err
    a, b, c = (read_lines(tmp_path / name / "items.jsonl") for name in "abc")
    assert a == b and a != c
    counts = {part: sum(item["part"] == part for item in a) for part in PARTS}
    assert len(a) == 400 and all(70 <= counts[p] <= 90 for p in PARTS[1:]), counts
    for part in PARTS[1:]:
        for label in ("refund", "delivery", "other_matter"):
            assert 15 <= sum(i["part"] == part and i["reference"] == label for i in a) <= 40
    part_of = {}
    for item in a:  # twins differ in the exclamation mark alone
        text = item["messages"][0]["content"].rstrip("!")
        assert part_of.setdefault(text, item["part"]) == item["part"]


def test_import_samples_by_label(penstock, source, tmp_path):
    code, out, err = run(penstock, "import", source, tmp_path / "w", "--limit", 100, "--json")
    assert code == 0, err
    assert json.loads(out)["items"] == 100
    labels = [i["reference"] for i in read_lines(tmp_path / "w" / "items.jsonl")]
    assert all(30 <= labels.count(label) <= 37 for label in set(labels))


@pytest.mark.parametrize("name, kind, grader", [("intents/banking77", "choice", "choice"), ("intents/clinc150", "choice", "choice"),
                                                ("extract/snips", "extract", "json")])
def test_import_of_public_sets(penstock, test_data, tmp_path, name, kind, grader):
    path = test_data / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    code, _, err = run(penstock, "import", path, tmp_path / "w")
    assert code == 0, err
    workload = json.loads((tmp_path / "w" / "workload.json").read_text(encoding="utf-8"))
    assert workload["task"]["kind"] == kind and workload["grader"]["type"] == grader and len(workload["prompts"]) >= 3
    items = read_lines(tmp_path / "w" / "items.jsonl")
    assert len(items) == len(path.read_text(encoding="utf-8").splitlines())
    for part in PARTS[1:]:
        assert 0.15 <= sum(i["part"] == part for i in items) / len(items) <= 0.25


def test_import_mistakes_leave_nothing(penstock, source, tmp_path):
    bad = tmp_path / "bad.jsonl"
    there = tmp_path / "there"
    there.mkdir()
    cases = [('{"text": "a", "label": "x"}\n{"text": ', [], "bad.jsonl:2"), ('{"txt": "a", "label": "x"}\n', [], "--text"),
             ('{"text": "a", "lbl": "x"}\n', [], "--answer"), ('{"text": "a", "label": "x"}\n', [], "too few"),
             ('{"text": "a", "label": "x"}\n{"text": "b"}\n', [], "bad.jsonl:2"), ('{"text": "", "label": "x"}\n', [], "bad.jsonl:1"),
             ('{"txt": "a", "lbl": "x"}\n', [], "there are txt, lbl"), ('text,label\na,b\n', [], "JSON object"),
             ('[1]\n', [], "object"), ('{"text": "a", "label": "x"}\n' * 20, [], "too alike"),
             ('{"text": "a", "label": "x"}\n', ["--shares", "1,2"], "--shares")]
    for text, options, message in cases:
        bad.write_text(text, encoding="utf-8")
        code, out, err = run(penstock, "import", bad, tmp_path / "w", *options)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and not out, (text, err)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "there"]
    assert run(penstock, "import", source, there)[0] == 2


def test_eval_mistakes(penstock, root, home, tmp_path):
    desk = root / "examples" / "support-desk"
    plan = tmp_path / "plan.json"
    plan.write_text('{"schema": 1, "rot": {}}', encoding="utf-8")
    cases = [([desk], "--target"), ([desk, "--target", "nothing"], "names no target"), ([desk, "--target", "model:none"], "none"),
             ([desk, "--target", "acme/large"], "no provider"), ([desk, "--target", "0123456789abcdef"], "0123456789abcdef"),
             ([desk, "--target", plan], "plan.json"), ([desk, "--target", "in-force"], ""),
             ([desk, "--target", "model:x", "--part", "verfy"], "--part"), ([tmp_path / "none", "--target", "model:x"], "not there"),
             ([plan, "--target", "model:x"], "folder")]
    for arguments, message in cases:
        code, out, err = run(penstock, "eval", *arguments, home=home)
        assert code == 2 and message in err and len(err.strip().splitlines()) <= 2 and not out, (arguments, code, err)


@pytest.fixture(scope="module")
def desk_plan(smollm2, root, tmp_path_factory):
    """A plan that answers with labels only: seconds for some hundred items."""
    workload = json.loads((root / "examples/support-desk/workload.json").read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("plans")

    def make(name, instruction, **node):
        plan = {"schema": 1, "workload": "support-desk", "labels": workload["task"]["labels"], "engines": {"e1": {"model": smollm2}},
                "root": {"op": "local", "engine": "e1", "prompt": {"name": name, "instruction": instruction}, "layout": "chat_inline",
                         "constraint": "labels", "max_tokens": 24, **node}}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(plan), encoding="utf-8")
        return path
    return make


def test_eval_compares_and_counts_uses(penstock, root, home, tmp_path, desk_plan):
    desk, a, b = root / "examples/support-desk", desk_plan("short", "Intent?"), desk_plan("long", "What is the intent of the message?")
    page = tmp_path / "report.html"
    code, out, err = run(penstock, "eval", desk, "--target", a, "--target", b, "--limit", 24, "--json", "--report", page, home=home)
    report = json.loads(out)
    assert code == {"yes": 0, "no": 1, "not enough data": 3}[report["verdict"]], err
    assert report["uses_of_part"] == 2 and [t["n"] for t in report["targets"]] == [24, 24]
    pair = report["comparisons"][0]
    assert pair["both"] + pair["only_candidate"] == report["targets"][0]["accepted"]
    assert pair["both"] + pair["only_candidate"] + pair["only_reference"] + pair["neither"] == pair["n"] == 24
    assert pair["difference"]["low"] <= pair["difference"]["estimate"] <= pair["difference"]["high"]
    assert all(t["failed"] == 0 and t["usd_per_1000_accepted"] != 0 for t in report["targets"])
    text = page.read_text(encoding="utf-8")
    assert '"uses_of_part":2' in text and "@DATA@" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    # The same question again: asked anew, the same answers, two uses more. Concurrency changes nothing.
    code, out, _ = run(penstock, "eval", desk, "--target", a, "--target", b, "--limit", 24, "--json", "--concurrency", 1, home=home)
    again = json.loads(out)
    assert again["uses_of_part"] == 4 and again["comparisons"] == report["comparisons"] and again["discordant"] == report["discordant"]


def test_too_few_items_are_not_enough_data(penstock, root, home, desk_plan):
    desk, a, b = root / "examples/support-desk", desk_plan("short", "Intent?"), desk_plan("long", "What is the intent of the message?")
    code, out, _ = run(penstock, "eval", desk, "--target", a, "--target", b, "--limit", 3, home=home)
    assert code in (1, 3) and "not enough data" in out or "no" in out
    assert code == 3 or "only B 3" in out


def test_a_killed_eval_is_taken_up(penstock, root, home, desk_plan):
    desk, plan = root / "examples/support-desk", desk_plan("short", "Intent?")
    command = [penstock, "eval", desk, "--target", plan, "--json", "--part", "search", "--limit", "120", "--concurrency", "2"]
    environment = dict(os.environ, PENSTOCK_HOME=str(home))
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    import sqlite3
    rows = 0
    while rows < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        if (home / "penstock.db").exists():
            try:
                with sqlite3.connect(f"file:{home}/penstock.db?mode=ro", uri=True) as db:
                    table = db.execute("select name from sqlite_master where name like '%run%row%'").fetchone()
                    rows = db.execute(f"select count(*) from {table[0]}").fetchone()[0] if table else 0
            except sqlite3.OperationalError:
                pass
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, out, err = run(*command, home=home)
    report = json.loads(out)
    target = report["targets"][0]
    assert target["reused"] >= min(rows, 20) > 0 and target["failed"] == 0 and report["uses_of_part"] == 1
    code, out, err = run(*command, "--fresh", home=home)
    fresh = json.loads(out)
    assert fresh["targets"][0]["reused"] == 0 and fresh["targets"][0]["accepted"] == target["accepted"]
