"""Records from the request to the data set: what is kept, said, exported, curated and deleted, through the real server and the unmodified client."""
import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import time

import openai
import pytest

HELLO = [{"role": "user", "content": "Say hello to the quixotic zebra."}]


def key_of(cli, name, *options):
    return json.loads(cli("key", "create", name, "--json", *options).stdout)["key"]


def records(cli, *arguments):
    return json.loads(cli("data", "list", "--json", "-n", "1000", *arguments).stdout)


def on_disk(home, text):
    return any(text.encode() in path.read_bytes() for path in home.rglob("*") if path.is_file())


def ask(server, key, model, headers=None, **more):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=300)
    return client.chat.completions.create(model=model, messages=HELLO, max_tokens=4, temperature=0, extra_headers=headers, **more)


# ---- consent ----


def test_consent_of_keys_and_headers(serve, cli, home, smollm2, model):
    keys = {name: key_of(cli, name, *options) for name, options in {
        "nothing": ["--keep", "nothing"], "metadata": ["--keep", "metadata"], "content": ["--keep", "content"],
        "train": ["--keep", "content", "--train", "yes", "--retention", "30"], "default": []}.items()}
    one = serve("--model", smollm2)
    made = {name: ask(one, key, model, user="ann").id for name, key in keys.items()}
    raised = ask(one, keys["metadata"], model, headers={"X-Penstock-Keep": "content", "X-Penstock-Train": "yes"}).id
    lowered = ask(one, keys["train"], model, headers={"X-Penstock-Keep": "metadata"}).id
    untrained = ask(one, keys["train"], model, headers={"X-Penstock-Train": "no", "X-Penstock-Retention-Days": "7", "X-Penstock-Subject": "bob"}, user="ann").id
    hidden = ask(one, keys["train"], model, headers={"X-Penstock-Keep": "nothing"}).id
    longer = ask(one, keys["train"], model, headers={"X-Penstock-Retention-Days": "365"}, safety_identifier="carl", user="ann").id
    for name, value in (("X-Penstock-Keep", "all"), ("X-Penstock-Train", "maybe"), ("X-Penstock-Retention-Days", "0"), ("X-Penstock-Retention-Days", "x"), ("X-Penstock-Subject", "x" * 600)):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(one, keys["train"], model, headers={name: value})
        assert caught.value.param == name.lower()
    assert one.request("/v1/feedback", {"completion_id": made["nothing"], "thumbs": "up"})[0] == 404
    assert one.stop() == 0
    found = {r["completion_id"]: r for r in records(cli)}
    assert set(found) == {*made.values(), raised, lowered, untrained, longer} - {made["nothing"]} and hidden not in found
    kept = {name: (found[i]["keep"], found[i]["train"]) for name, i in made.items() if i in found}
    assert kept == {"metadata": ("metadata", False), "content": ("content", False), "train": ("content", True), "default": ("metadata", False)}
    assert all(found[made[name]]["subject"] == "ann" for name in kept)
    assert (found[raised]["keep"], found[raised]["train"]) == ("metadata", False)
    assert (found[lowered]["keep"], found[lowered]["train"]) == ("metadata", False)
    day = 86400000
    assert found[untrained]["train"] is False and found[untrained]["subject"] == "bob" and found[untrained]["expires_ms"] == found[untrained]["time_ms"] + 7 * day
    assert found[longer]["expires_ms"] == found[longer]["time_ms"] + 30 * day and found[longer]["subject"] == "carl"
    assert found[made["content"]]["expires_ms"] is None
    shown = json.loads(cli("data", "show", made["train"]).stdout)
    assert shown["input"]["messages"] == HELLO and shown["output"]["choices"][0]["text"]
    assert json.loads(cli("data", "show", made["metadata"]).stdout)["input"] is None


def test_nothing_is_written_where_nothing_is_allowed(serve, cli, home, smollm2, model):
    keys = [key_of(cli, name, "--keep", name) for name in ("nothing", "metadata")]
    one = serve("--model", smollm2)
    for key in keys:
        for stream in (False, True):
            answer = ask(one, key, model, stream=stream, user="subject-of-" + key[-4:])
            if stream:
                list(answer)
        client = openai.OpenAI(base_url=one.url + "/v1", api_key=key, max_retries=0)
        client.completions.create(model=model, prompt="The quixotic zebra", max_tokens=2)
    assert one.stop() == 0
    assert "quixotic" not in "".join(one.log)
    assert not on_disk(home, "quixotic") and not on_disk(home, "subject-of-" + keys[0][-4:]) and on_disk(home, "subject-of-" + keys[1][-4:])
    assert len(records(cli)) == 3


def test_key_consent_can_be_changed_and_is_checked(cli):
    cli("key", "create", "app")
    assert json.loads(cli("key", "--json").stdout)[0]["keep"] is None
    cli("key", "consent", "app", "--keep", "content", "--train", "yes", "--retention", "9")
    (key,) = json.loads(cli("key", "--json").stdout)
    assert (key["keep"], key["train"], key["retention_days"]) == ("content", True, 9)
    cli("key", "consent", "app", "--train", "no")
    assert json.loads(cli("key", "--json").stdout)[0]["keep"] == "content"
    cli("key", "consent", "app", "--keep", "default")
    assert json.loads(cli("key", "--json").stdout)[0]["keep"] is None
    for bad in (("--keep", "metadata", "--train", "yes"), ("--keep", "some"), ("--train", "perhaps"), ("--retention", "-1"), ()):
        done = cli("key", "consent", "app", *bad, ok=False)
        assert done.returncode == 2 and done.stderr.count("\n") <= 2, (bad, done.stderr)


def test_consent_is_not_lowered_by_what_was_not_said(cli):
    cli("key", "create", "app", "--keep", "default")
    for command in (("consent", "app"), ("create", "other")):
        for bad in (("--retention", "30"), ("--train", "no"), ("--keep", "default", "--retention", "30"), ("--keep", "default", "--train", "no")):
            done = cli("key", *command, *bad, ok=False)
            assert done.returncode == 2 and "--keep" in done.stderr, (command, bad, done.stderr)
    (key,) = json.loads(cli("key", "--json").stdout)
    assert key["name"] == "app" and key["keep"] is None
    cli("key", "consent", "app", "--keep", "content")
    cli("key", "consent", "app", "--retention", "30")  # now there is something that it lowers
    (key,) = json.loads(cli("key", "--json").stdout)
    assert (key["keep"], key["retention_days"]) == ("content", 30)
    head, row = cli("key").stdout.splitlines()
    assert "RETENTION" in head and row[head.index("RETENTION"):].split()[0] == "30"
    assert "default: what the server says" in cli("key", "--help").stdout


# ---- what a command line says ----


@pytest.mark.parametrize("command, option, taken", [
    (("key", "limit", "web", "--day", "5"), ("--keep", "nothing"), "create and consent"), (("key", "disable", "web"), ("--keep", "nothing"), "consent"),
    (("key", "list"), ("--day", "5"), "create and limit"), (("key", "create", "new"), ("--runs",), "list"), (("key", "consent", "web", "--keep", "content"), ("-w", "desk"), "limit"),
    (("data", "prune"), ("--subject", "u"), "list, import, export and delete"), (("data", "stats"), ("-s", "u"), "delete"), (("data", "delete", "--id", "1"), ("--set", "12345678"), "export"),
    (("data", "export"), ("--seed", "2"), "curate"), (("data", "curate", "w"), ("--subject", "u"), "delete"), (("data", "list"), ("--format", "csv"), "import and export"),
    (("data", "export"), ("--retention", "3"), "import"), (("adapters", "remove", "a"), ("--peft",), "export"), (("adapters", "list"), ("--model", "m"), "add and export"),
])
def test_options_of_another_action_are_refused(cli, home, tmp_path, command, option, taken):
    cli("key", "create", "web")
    cli("data", "import", "w", write_lines(tmp_path / "in.jsonl", [{"text": "a", "label": "b", "subject": "u"}]))
    with sqlite3.connect(home / "penstock.db") as db:
        db.execute("UPDATE requests SET expires_ms = 1")
    before = cli("key", "list", "--json").stdout, cli("data", "list", "--json").stdout
    done = cli(*command, *option, ok=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert taken in done.stderr and f"{command[0]} {command[1]}" in done.stderr
    assert (cli("key", "list", "--json").stdout, cli("data", "list", "--json").stdout) == before


def test_a_filter_that_finds_nothing_says_what_was_asked(cli, home, tmp_path):
    assert "no records yet" in cli("data", "list").stdout and "no data sets yet" in cli("data", "sets").stdout
    for command, hint in ((("data", "list", "desk"), "data stats"), (("data", "sets", "desk"), "data curate desk"), (("requests", "-w", "desk"), "requests --all")):
        text = cli(*command).stdout
        assert '"desk"' in text and f"penstock {hint}" in text, (command, text)
        assert json.loads(cli(*command, "--json").stdout) == []
    for more in ((), ("--json",)):
        done = cli("feedback", "x", *more, ok=False)
        assert done.returncode == 2 and done.stdout == "" and '"x"' in done.stderr and "penstock data list" in done.stderr
    cli("data", "import", "desk", write_lines(tmp_path / "in.jsonl", [{"text": "a", "label": "b", "subject": "ann"}]), "--train", "no", "--retention", "9")
    said = {
        ("data", "list", "--subject", "bob"): ('subject "bob"', "data stats"), ("data", "list", "--trainable"): ("may be trained on", "data stats"),
        ("data", "list", "desk", "--trainable", "-s", "ann"): ('of "desk" of the subject "ann" that may be trained on', "data list desk"),
        ("data", "sets", "desk"): ('"desk"', "data curate desk"), ("requests", "-w", "desk"): ('"desk"', "data list desk"),
    }
    for command, words in said.items():
        text = cli(*command).stdout
        assert all(word in text for word in words) and " yet; users" not in text, (command, text)
        assert json.loads(cli(*command, "--json").stdout) == []
    (record,) = records(cli, "desk")
    assert "no feedback of that id" in cli("feedback", record["completion_id"]).stdout and json.loads(cli("feedback", record["completion_id"], "--json").stdout) == []
    head, row = cli("data", "stats").stdout.splitlines()
    assert dict(zip(head.split(), row.split()))["EXPIRING"] == "1"
    with sqlite3.connect(home / "penstock.db") as db:
        db.execute("UPDATE requests SET purpose = 2")  # an eval's
    assert "requests -w desk --all" in cli("data", "list", "desk").stdout


def test_a_record_is_named_by_its_number_too(cli, home, tmp_path):
    def add(name):
        cli("data", "import", "w", write_lines(tmp_path / "in.jsonl", [{"text": f"text of {name}", "label": "b", "subject": name}]))

    add("first")
    with sqlite3.connect(home / "penstock.db") as db:
        db.execute("UPDATE sqlite_sequence SET seq = 12345677 WHERE name = 'requests'")
    add("ann")
    add("bob")
    last, ann, first = records(cli, "w")
    assert ann["record"] == 12345678 and last["record"] == 12345679
    for record in (first, ann, last):
        assert json.loads(cli("data", "show", record["record"]).stdout)["completion_id"] == record["completion_id"]
    for wrong in (first["record"] + 1, 12345680, 12345677):
        assert cli("data", "show", wrong, ok=False).returncode == 2 and cli("data", "delete", "--id", wrong, ok=False).returncode == 2
        assert cli("feedback", wrong, "--thumbs", "up", ok=False).returncode == 2
    cli("feedback", ann["record"], "--thumbs", "up", "--outcome", "kept")
    assert [f["completion_id"] for f in json.loads(cli("feedback", "--json").stdout)] == [ann["completion_id"]]
    assert "kept" in cli("feedback", ann["record"]).stdout
    with sqlite3.connect(home / "penstock.db") as db:
        db.execute("UPDATE requests SET completion_id = ? WHERE subject = 'bob'", (str(first["record"]),))
    assert json.loads(cli("data", "show", first["record"]).stdout)["subject"] == "bob"  # an id counts before a number, wherever one is named
    assert json.loads(cli("data", "delete", "--id", first["record"], "--json").stdout)["records"] == 1
    assert json.loads(cli("data", "delete", "--id", ann["record"], "--json").stdout)["records"] == 1
    assert [r["subject"] for r in records(cli)] == ["first"]


def test_texts_of_others_do_not_act_on_the_terminal(cli, tmp_path):
    cli("data", "import", "w", write_lines(tmp_path / "in.jsonl", [{"text": "a", "label": "b", "subject": "x\x1b[31m\u009b31my\u00e9"}]))
    (record,) = records(cli)
    cli("feedback", record["completion_id"], "--outcome", "red\x1b[31m\nnext\u009b", "--correction", "\x07caf\u00e9")
    for command in (("data", "list"), ("feedback",), ("requests", "--all")):
        text = cli(*command).stdout
        assert not any(ord(c) < 32 and c != "\n" or 127 <= ord(c) < 160 for c in text), (command, text)
    assert "red [31m next ;  caf\u00e9\n" in cli("feedback").stdout and "31my\u00e9" in cli("data", "list").stdout


def test_an_export_to_a_file_is_told_as_json(cli, tmp_path):
    cli("data", "import", "w", write_lines(tmp_path / "in.jsonl", [{"messages": m} for m in CONVERSATIONS]))
    out = tmp_path / "out.csv"
    done = cli("data", "export", "w", "--format", "csv", "-o", out, "--json", "-q")
    assert json.loads(done.stdout) == {"path": str(out), "format": "csv", "written": 2, "left_out": 1} and done.stderr == ""
    assert len(cli("data", "export", "w", "--json").stdout.splitlines()) == 3  # the records themselves, and nothing among them


# ---- feedback, export, deletion ----


def test_feedback_export_and_deletion(serve, cli, home, smollm2, model):
    one = serve("--model", smollm2, "--keep", "content", "--train", "yes")
    first, second = ask(one, "none", model, user="ann"), ask(one, "none", model, user="bob")
    for verb in ({"thumbs": "down", "correction": "Hello, velvet gnu!"}, {"retry": True}, {"outcome": "refund"}):
        assert one.request("/v1/feedback", {"completion_id": first.id, **verb})[0] == 200
    cli("feedback", second.id, "--thumbs", "up", "--score", "0.5", "--abandon")
    said = json.loads(cli("feedback", second.id, "--json").stdout)
    assert said[0]["thumbs"] == "up" and said[0]["score"] == 0.5 and said[0]["abandon"] is True
    assert cli("feedback", "--thumbs", "up", ok=False).returncode == 2 and cli("feedback", "no-such-id", "--retry", ok=False).returncode == 2
    lines = [json.loads(line) for line in cli("data", "export").stdout.splitlines()]
    assert [line["messages"][-1]["content"] for line in lines] == ["Hello, velvet gnu!", second.choices[0].message.content]
    (bobs,) = [json.loads(line) for line in cli("data", "export", "--subject", "bob", "--format", "chat").stdout.splitlines()]
    assert bobs["response"]["id"] == second.id and bobs["request"]["safety_identifier"] == "bob" and bobs["request"]["messages"] == HELLO
    gone = json.loads(cli("data", "delete", "--subject", "ann", "--json").stdout)
    assert gone["records"] == 1
    assert one.stop() == 0
    assert [r["completion_id"] for r in records(cli)] == [second.id]
    assert not on_disk(home, "velvet gnu")
    assert cli("data", "delete", "--subject", "ann", ok=False).returncode == 2
    assert cli("data", "delete", ok=False).returncode == 2


def test_serve_forgets_what_has_expired(serve, cli, home, smollm2, model):
    key = key_of(cli, "app", "--keep", "content", "--retention", "1")
    one = serve("--model", smollm2)
    answer = ask(one, key, model, user="ann")
    assert one.stop() == 0
    with sqlite3.connect(home / "penstock.db") as db:
        db.execute("UPDATE requests SET expires_ms = 1")
    two = serve("--model", smollm2)
    two.until(lambda: "event=pruned records=1" in "".join(two.log), "the expired record is pruned")
    assert two.stop() == 0
    (row,) = records(cli)
    assert row["completion_id"] == answer.id and row["keep"] == "metadata" and row["subject"] is None
    assert not on_disk(home, "quixotic") and json.loads(cli("requests", "--json").stdout)[0]["prompt_tokens"] > 0
    assert json.loads(cli("data", "prune", "--json").stdout)["records"] == 0


# ---- import and export ----

CONVERSATIONS = [
    [{"role": "user", "content": "plain"}, {"role": "assistant", "content": "answer"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": 'quotes ", commas, and\nlines\r\n'}, {"role": "assistant", "content": " spaces and \u00e9\u4e16\U0001f600 "}],
    [{"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}, {"role": "user", "content": "third"}, {"role": "assistant", "content": "fourth"}],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]


def exported(cli, workload, form, *more):
    return cli("data", "export", workload, "--format", form, *more).stdout


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_round_trips(cli, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"messages": m} for m in CONVERSATIONS])
    cli("data", "import", "w", source)
    assert [json.loads(line)["messages"] for line in exported(cli, "w", "openai").splitlines()] == CONVERSATIONS
    for form in ("openai", "chat", "sharegpt"):
        path = tmp_path / f"out.{form}"
        cli("data", "export", "w", "--format", form, "--output", path)
        assert json.loads(cli("data", "import", f"again-{form}", path, "--json").stdout) == {"new": 3, "known": 0, "format": form}
        assert exported(cli, f"again-{form}", "openai") == exported(cli, "w", "openai")
    (tmp_path / "array.json").write_text(json.dumps([json.loads(line) for line in exported(cli, "w", "sharegpt").splitlines()], indent=2))
    cli("data", "import", "array", tmp_path / "array.json")
    assert exported(cli, "array", "openai") == exported(cli, "w", "openai")
    done = cli("data", "export", "w", "--format", "csv", "--output", tmp_path / "out.csv")
    assert "2 records written, 1 left out" in done.stderr
    with open(tmp_path / "out.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["system"], r["input"], r["answer"]) for r in rows] == [("", "plain", "answer"), ("Be kind.", CONVERSATIONS[1][1]["content"], CONVERSATIONS[1][2]["content"])]
    cli("data", "import", "from-csv", tmp_path / "out.csv")
    assert [json.loads(line)["messages"] for line in exported(cli, "from-csv", "openai").splitlines()] == CONVERSATIONS[:2]


def test_tools_subjects_and_the_same_file_twice(cli, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "do it"}, {"role": "assistant", "content": None, "tool_calls": CALL}], "tools": TOOLS, "user": "ann"},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "part one, "}, {"type": "text", "text": "part two"}]}, {"role": "assistant", "content": "ok"}]}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    assert json.loads(cli("data", "import", "w", source, "--subject", "bob", "--retention", "5", "--train", "no", "--json").stdout)["new"] == 2
    assert json.loads(cli("data", "import", "w", source, "--json").stdout) == {"new": 0, "known": 2, "format": "openai"}
    listed = records(cli, "w")
    assert [r["subject"] for r in listed] == ["bob", "ann"] and all(r["imported"] and r["expires_ms"] and not r["train"] for r in listed)
    for form in ("openai", "chat"):
        back = [json.loads(line) for line in exported(cli, "w", form).splitlines()]
        answers = [r["messages"][-1] if form == "openai" else r["response"]["choices"][0]["message"] for r in back]
        assert answers[0]["tool_calls"] == CALL and answers[0]["content"] is None
        assert (back[0] if form == "openai" else back[0]["request"])["tools"] == TOOLS
    assert "1 records written, 1 left out" in cli("data", "export", "w", "--format", "sharegpt").stderr
    assert cli("requests").stdout.startswith("no requests")  # imported rows are nobody's requests here
    piped = subprocess.run([os.environ.get("PENSTOCK_BIN", "build/penstock"), "data", "import", "piped", "-"], input=source.read_text(), text=True, capture_output=True, env={**os.environ, "PENSTOCK_HOME": str(tmp_path / "home")})
    assert piped.returncode == 0 and "2 records imported" in piped.stdout, piped.stderr
    assert cli("data", "delete", "--imported", "pipes", ok=False).returncode == 2  # a name that nothing has
    assert cli("data", "delete", "--imported", "piped", "--subject", "ann", ok=False).returncode == 2
    assert json.loads(cli("data", "delete", "--imported", "piped", "--json").stdout)["records"] == 2
    assert records(cli, "piped") == [] and len(records(cli, "w")) == 2


GOOD = json.dumps({"messages": CONVERSATIONS[0]})
BAD_ROWS = {
    "not json": ('{"messages": [', "not valid JSON"),
    "no object": ('"text"', "not a JSON object"),
    "no messages": ('{"messages": {}}', '"messages" must be'),
    "one message": ('{"messages": [{"role": "user", "content": "x"}]}', '"messages" must be'),
    "no answer": ('{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}', "not the assistant's"),
    "empty answer": ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}', "is empty"),
    "bad role": ('{"messages": [{"role": "boss", "content": "x"}, {"role": "assistant", "content": "y"}]}', "messages[0].role is 'boss'"),
    "bad content": ('{"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": "y"}]}', "messages[0].content is not text"),
    "long subject": (json.dumps({"messages": CONVERSATIONS[0], "user": "x" * 600}), "subject has more than"),
    "broken utf-8": (b'{"messages": "\xff\xfe"}', "valid JSON"),
    "deep": ("[" * 5000, ""),
    "twice the same name": ('{"messages": [], "messages": []}', ""),
    "NUL": (b'{"messages": \x00}', ""),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_line_is_one_clear_error_and_nothing_is_stored(cli, tmp_path, name):
    row, word = BAD_ROWS[name]
    path = tmp_path / "bad.jsonl"
    path.write_bytes((GOOD + "\n\n" + GOOD + "\n").encode() + (row if isinstance(row, bytes) else row.encode()) + b"\n" + GOOD.encode() + b"\n")
    done = cli("data", "import", "w", path, ok=False)
    assert done.returncode in (1, 2) and done.stderr.startswith(f"penstock: {path}:4:") and done.stderr.count("\n") == 1 and word in done.stderr, done.stderr
    assert records(cli) == []


@pytest.mark.parametrize("name,text,word", [
    ("x.csv", "text,label\n1,2\n\"open,3\n", "x.csv:3: a quoted field is not closed"), ("x.csv", "text,label\n\"a\"b,c\n", "goes on behind"), ("x.csv", "text,label\na\n", "x.csv:2: the answer is empty"),
    ("x.csv", "a,b\n1,2\n", "no column is named"), ("x.csv", "", "no rows"), ("x.json", "[", "not closed"), ("x.json", "[]", "no rows"), ("x.json", f"[{GOOD}] x", "behind the array"),
    ("x.json", f"[{GOOD} {GOOD}]", ""), ("x.json", f"[{GOOD},]", ""), ("x.jsonl", '{"conversations": [{"from": "human", "value": "a"}, {"from": "dog", "value": "b"}]}', "conversations[1].from is 'dog'"),
    ("x.jsonl", '{"text": "a"}', "no answer field"), ("x.jsonl", '{"request": {"messages": []}, "response": {}}', "no choices[0].message")])
def test_bad_files(cli, tmp_path, name, text, word):
    path = tmp_path / name
    path.write_text(text)
    done = cli("data", "import", "w", path, ok=False)
    assert done.returncode in (1, 2, 3) and done.stderr.count("\n") == 1 and word in done.stderr, done.stderr
    assert records(cli) == []


def test_bad_arguments(cli, tmp_path):
    for bad in (("bogus",), ("import", "w"), ("import", "w", tmp_path), ("import", "w", tmp_path / "none"), ("export", "--format", "word"), ("show", "nothing"), ("import", "w", "x", "--keep", "metadata"), ("curate",)):
        done = cli("data", *bad, ok=False)
        assert done.returncode in (1, 2) and done.stderr.count("\n") <= 2 and "Traceback" not in done.stderr, (bad, done.stderr)
    assert cli("data", "export", ok=False).returncode == 3 and cli("data", "curate", "w", ok=False).returncode == 3


def test_random_bytes_are_refused_or_read(cli, tmp_path):
    dice = random.Random(5)
    pieces = [GOOD.encode(), b"[", b"]", b",", b"\n", b'"', b"{", b"}", b"\xff", b"\\", b'{"text":"a","label":"b"}', b"a,b", b"\x00"]
    for i in range(40):
        path = tmp_path / f"r{i}{dice.choice(['.csv', '.json', '.jsonl'])}"
        path.write_bytes(b"".join(dice.choice(pieces) for _ in range(dice.randrange(1, 12))))
        done = cli("data", "import", "w", path, ok=False)
        assert done.returncode in (0, 1, 2, 3) and done.stderr.count("\n") <= 1, done.stderr


def test_a_killed_import_leaves_nothing(penstock, cli, home, tmp_path):
    n = 40000
    path = write_lines(tmp_path / "many.jsonl", ({"text": f"text number {i} of many " + "x" * 200, "label": str(i % 7)} for i in range(n)))
    cli("data", "stats")
    killed = 0
    for delay in (0.02, 0.05, 0.1, 0.2, 0.3):
        process = subprocess.Popen([penstock, "data", "import", "w", str(path), "-q"], env={**os.environ, "PENSTOCK_HOME": str(home)}, stdout=subprocess.PIPE)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        stats = json.loads(cli("data", "stats", "--json").stdout)
        assert stats == [] or stats[0]["records"] == n
    assert killed
    cli("data", "import", "w", path)
    assert json.loads(cli("data", "stats", "--json").stdout)[0]["records"] == n


# ---- curation ----


def test_curation_and_lineage(cli, home, tmp_path):
    rows = [{"text": f"where is parcel {'abcdefghij'[i % 10]} with the {i} red stripes on its {i * 7} sides", "label": "parcel" if i % 2 else "stripes", "subject": f"s{i % 4}"} for i in range(40)]
    rows += [{"text": "write to ann.lee@example.com, or call +49 30 901820 12", "label": "parcel", "subject": "s1"}, rows[3]]
    cli("data", "import", "w", write_lines(tmp_path / "in.jsonl", rows))
    report = json.loads(cli("data", "curate", "w", "--json", "--skip-suspects").stdout)
    assert report["records"] == 42 and report["private"] == {"PHONE": 1, "EMAIL": 1}
    assert {d["reason"]: d["n"] for d in report["dropped"]}["duplicate"] == 1
    data_set = report["data_set"]
    lines = [json.loads(line) for line in (home / "files" / data_set).read_text().splitlines()]
    assert len(lines) == report["kept"] and sum(line["part"] == "held" for line in lines) == report["held"]
    assert any(line["messages"][0]["content"] == "write to [EMAIL_1], or call [PHONE_1]" for line in lines)
    taken = [json.loads(line) for line in cli("data", "export", "--set", data_set[:12]).stdout.splitlines()]
    assert taken == [{"messages": line["messages"]} for line in lines]
    assert cli("data", "export", "--set", data_set, "--format", "csv", ok=False).returncode == 2
    text = cli("data", "curate", "w", "--skip-suspects").stdout
    assert data_set in text and "duplicate" in text and "ann.lee" not in text
    assert data_set[:12] in cli("data", "sets", "w").stdout and json.loads(cli("data", "show", data_set[:12]).stdout)["state"] == "whole"
    gone = json.loads(cli("data", "delete", "--subject", "s1", "--json").stdout)
    (changed,) = gone["data_sets"]
    assert changed["data_set"] == data_set and changed["replaced_by"] and not (home / "files" / data_set).exists()
    assert len((home / "files" / changed["replaced_by"]).read_text().splitlines()) == report["kept"] - changed["lines"]
    assert json.loads(cli("data", "show", data_set[:12]).stdout)["replaced_by"] == changed["replaced_by"]
    refused = cli("data", "export", "--set", data_set, ok=False)
    assert refused.returncode == 2 and changed["replaced_by"][:12] in refused.stderr
    assert not on_disk(home, "ann.lee")


def test_what_was_asked_in_an_evaluation_is_no_training_data(cli, home, smollm2, tmp_path):
    rows = [{"text": f"the {a} {b} jumps over the {c} dog", "label": b} for a, b, c in (("quick", "fox", "lazy"), ("slow", "ox", "green"), ("old", "cat", "tired"), ("red", "hen", "small"), ("blue", "fox", "loud"), ("sad", "ox", "wise"), ("wet", "cat", "calm"), ("tall", "hen", "shy"))]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    cli("import", source, tmp_path / "animals", "--shares", "0.25,0.25,0.25,0.25")
    items = [json.loads(line) for line in (tmp_path / "animals" / "items.jsonl").read_text().splitlines()]
    cli("data", "import", "w", source)
    assert json.loads(cli("data", "curate", "w", "--json").stdout)["guarded_items"] == 0
    cli("eval", tmp_path / "animals", "--target", f"model:{smollm2}", "--limit", "2", ok=False)
    report = json.loads(cli("data", "curate", "w", "--json", "--near", "1").stdout)
    examples = sum(i["part"] == "examples" for i in items)
    assert report["guarded_items"] == len(items) - examples
    assert {d["reason"]: d["n"] for d in report["dropped"]}["contaminated"] >= len(items) - examples


def test_a_workload_is_named_by_its_folder_too(cli, tmp_path):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    (folder / "workload.json").write_text(json.dumps({"name": "desk"}))
    rows = write_lines(tmp_path / "in.jsonl", [{"text": "a", "label": "b"}])
    cli("data", "import", folder, rows)
    assert [r["workload"] for r in records(cli, "desk")] == ["desk"] == [r["workload"] for r in records(cli, folder)]
    done = cli("data", "import", "./elsewhere", rows, ok=False)
    assert done.returncode == 2 and "./elsewhere" in done.stderr and len(records(cli)) == 1
    assert 'no requests of "desk"' in cli("requests", "-w", folder).stdout
    cli("key", "create", "app", "-w", folder)
    cli("key", "create", "other")
    cli("key", "limit", "other", "-w", folder)
    assert [key["workload"] for key in json.loads(cli("key", "--json").stdout)] == ["desk", "desk"]
    cli("key", "limit", "other", "-w", "")
    assert [bool(key["workload"]) for key in json.loads(cli("key", "--json").stdout)] == [True, False]
    assert 'no answer of "desk"' in cli("answers", folder, ok=False).stderr
    for command in (("requests", "-w"), ("key", "create", "third", "-w"), ("answers",)):
        assert "./elsewhere" in cli(*command, "./elsewhere", ok=False).stderr
    assert len(json.loads(cli("key", "--json").stdout)) == 2


def test_what_only_a_judging_model_can_say_is_not_taken_without_one(cli, tmp_path):
    cli("data", "import", "desk", write_lines(tmp_path / "in.jsonl", [{"text": "a", "label": "b"}]))
    for options in (("--least-gap", "0.1"), ("--flag-gaps",)):
        done = cli("data", "curate", "desk", *options, ok=False)
        assert done.returncode == 2 and "--gap-model" in done.stderr
    assert json.loads(cli("data", "sets", "desk", "--json").stdout) == []


def test_pairs_of_a_preference_set_are_exported_as_dpo_learns_them(cli, tmp_path):
    cli("data", "import", "w", write_lines(tmp_path / "in.jsonl", [{"text": "who painted the night watch", "label": "Vermeer"}, {"text": "how long do eggs boil", "label": "8 minutes"}]))
    second, first = records(cli, "w")
    cli("feedback", first["record"], "--correction", "Rembrandt")
    cli("feedback", second["record"], "--thumbs", "up")
    made = json.loads(cli("data", "curate", "w", "--preferences", "--held", "0", "--json").stdout)
    out = tmp_path / "pairs.jsonl"
    done = json.loads(cli("data", "export", "--set", made["data_set"], "-o", out, "--json", "-q").stdout)
    assert (done["written"], done["left_out"]) == (1, 1)  # nobody said what would have been better than 8 minutes, or worse
    (pair,) = map(json.loads, out.read_text().splitlines())
    assert pair == {"input": {"messages": [{"role": "user", "content": "who painted the night watch"}]},
                    "preferred_output": [{"role": "assistant", "content": "Rembrandt"}], "non_preferred_output": [{"role": "assistant", "content": "Vermeer"}]}
