"""Bad workloads, goals, prompts, requests, ports and disks: each is one clear line with place and remedy, exit 2, and leaves nothing behind.

Everything runs as the user of the tests, and when that is root, as `nobody` too (conftest.py), on a model small enough to be made here.
"""
import json
import os
import re
import signal
import socket
import sqlite3
import urllib.error
import urllib.request

import gguf_file
import pytest

WORKLOAD = {"schema": 1, "name": "desk", "task": {"kind": "choice", "labels": ["a", "b"], "input": "last_user_message"},
            "prompts": [{"name": "p", "system": "", "instruction": "a or b?"}], "grader": {"type": "choice", "field": "intent"}, "goal": {}}


def item(i, **change):
    words = " ".join(f"w{(i * 7 + k * k * 13) % 997}" for k in range(6))
    one = {"id": f"m{i}", "messages": [{"role": "user", "content": words}], "reference": {"intent": "ab"[i % 2]},
           "part": ["examples", "search", "verify", "sealed"][i % 4]}
    return {k: v for k, v in {**one, **change}.items() if v is not None}


def lines(items):
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in items)


@pytest.fixture
def tiny(place):
    return place.write("tiny.gguf", gguf_file.build()[1])


@pytest.fixture
def desk(place):
    """desk(workload=..., items=..., trace=...): the folder, written anew."""
    folder = os.path.join(place.path, "desk")
    os.mkdir(folder)

    def make(workload=None, items=None, trace=None):
        for name, text in (("workload.json", json.dumps({**WORKLOAD, **(workload or {})})), ("trace.jsonl", trace),
                           ("items.jsonl", lines(map(item, range(80))) if items is None else items)):
            path = os.path.join(folder, name)
            if os.path.exists(path):
                os.remove(path)
            if text is not None:
                place.write(path, text if isinstance(text, bytes) else text.encode())
        return folder

    return make


@pytest.mark.parametrize("command", ["eval", "optimize"])
def test_malformed_lines(place, desk, tiny, command):
    good = [item(i) for i in range(80)]
    bad = [('{"id": "x", ', "items.jsonl:3"), ("[1]", "items.jsonl:3"), (b"\xff\xfe", "items.jsonl:3"), (item(2, messages=None), "messages"),
           (item(2, id=None), "id"), (item(2, id="m0"), "m0"), (item(2, id="x" * 300), "256"), (item(2, part="verfy"), "verfy"),
           (item(2, reference={"intent": "c"}), "labels"), (item(2, reference=None), "reference"), (item(2, note=1), "note"),
           (item(2, messages=[]), "messages"), (item(2, messages=[{"role": "robot", "content": "x"}]), "role"),
           (item(2, messages=[{"role": "assistant", "content": "x"}]), "user"), (item(2, messages=[{"role": "user", "content": 5}]), "content")]
    for line, says in bad:
        text = lines(good[:2]).encode() + (line + b"\n" if isinstance(line, bytes) else lines([line]).encode()) + lines(good[3:]).encode()
        words = [command, desk(items=text), "--target", f"model:{tiny}"] if command == "eval" else [command, desk(items=text), "-m", tiny]
        place.refused(*words, says=["items.jsonl:3", says])
    for line, says in [('{"t_ms": 5, "item": "none"}', "none"), ('{"t_ms": -1, "item": "m0"}', "t_ms"), ('{"t_ms": 1}', "item"), ("{", "")]:
        folder = desk(trace='{"t_ms": 3, "item": "m1"}\n' + line + "\n")
        place.refused("optimize", folder, "-m", tiny, says=["trace.jsonl:2", says])


def test_malformed_workloads(place, desk, tiny):
    task = WORKLOAD["task"]
    cases = [({"schema": 2}, "schema"), ({"name": ""}, "name"), ({"task": {**task, "labels": ["a"]}}, "labels"), ({"task": {**task, "kind": "guess"}}, "guess"),
             ({"task": {**task, "input": {"pattern": "("}}}, "pattern"), ({"prompts": []}, "prompts"), ({"grader": {"type": "telepathy"}}, "telepathy"),
             ({"extra": 1}, "extra"), ({"goal": 5}, "goal"), ({"settings": {"max_tokens": 0}}, "max_tokens"), ({"privacy": {"remote": "no"}}, "remote")]
    for change, says in cases:
        for words in (["eval", desk(change), "--target", f"model:{tiny}"], ["optimize", desk(change), "-m", tiny]):
            place.refused(*words, says=["workload.json", says])
    place.refused("eval", desk(items=""), "--target", f"model:{tiny}", says="items.jsonl")


def test_impossible_goals(place, desk, tiny):
    cases = [({"quality_floor": 1.01}, "quality_floor"), ({"quality_floor": "high"}, "quality_floor"), ({"margin": 0}, "margin"), ({"margin": 0.9}, "margin"),
             ({"objective": "fame"}, "fame"), ({"latency_p95_ms": 0}, "latency_p95_ms"), ({"latency_p95_ms": -5}, "latency_p95_ms"),
             ({"cost_ceiling_usd_per_1000": -1}, "cost_ceiling_usd_per_1000"), ({"cost_ceiling_usd_per_1000": 0}, "cost_ceiling_usd_per_1000"),
             ({"deadline": 3}, "deadline")]
    for goal, says in cases:
        place.refused("optimize", desk({"goal": goal}), "-m", tiny, says=["workload.json", says])
    # Within its range, but beyond this machine: found out after calibration, so with a data directory, but without a plan.
    plan = os.path.join(place.path, "plan.json")
    done = place.run("optimize", desk({"goal": {"latency_p95_ms": 0.001}}), "-m", tiny, "-o", plan, "-q", "-b", "0.2")
    text = done.stderr.decode()
    assert done.returncode == 2 and done.stdout == b"" and text.count("\n") == 1, text
    assert "goal.latency_p95_ms" in text and "0.001 ms cannot be kept" in text and "raise it" in text
    assert not os.path.exists(plan)
    with sqlite3.connect(os.path.join(place.home, "penstock.db")) as db:
        assert db.execute("select count(*) from plans").fetchone()[0] == 0


def test_prompts_that_are_too_long(place, tiny):
    place.refused("run", tiny, "word " * 600, says=["512", "tokens"])
    place.refused("run", tiny, "word", "-n", "0", says=["--max-tokens", "0"])


# ---- a full disk ----


def test_full_disk(place, desk, tiny):
    """The size limit of the process stands in for a full disk."""
    source = place.write("source.jsonl", lines({"text": item(i)["messages"][0]["content"], "label": "ab"[i % 2]} for i in range(400)).encode())
    folder, plan = desk(), os.path.join(place.path, "plan.json")
    for limit in (0, 1000):
        place.refused("import", source, os.path.join(place.path, "new"), limit=limit, says="too large")
        place.refused("key", "create", "name", limit=limit, says=[place.home])
        place.refused("eval", folder, "--target", f"model:{tiny}", limit=limit, says=[place.home])
        place.refused("optimize", folder, "-m", tiny, "-o", plan, limit=limit, says=[place.home])
        place.refused("serve", "--port", "0", "--model", tiny, limit=limit, says=[place.home])
    assert not os.path.exists(os.path.join(place.path, "new"))
    assert place.run("key", "create", "name").returncode == 0  # once there is room, all is well


# ---- a server ----


@pytest.fixture
def server(place, tiny):
    """(address, model) of a server that must still be well, and end well, after the test."""
    process = place.start("serve", "--port", "0", "--model", tiny)
    try:
        hello = process.stdout.readline()
        found = re.search(r"serving (\S+) at (http://\S+)/v1;", hello)
        assert found, hello + process.stderr.read()
        yield found.group(2), found.group(1)
        assert ask(found.group(2), {"model": found.group(1), "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})[0] == 200
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "Sanitizer" not in log and "runtime error" not in log, log


def ask(address, body, path="/v1/chat/completions"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data=data, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_bad_requests(server):
    address, model = server
    chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    cases = [(b"", 400, None, ""), (b"{", 400, None, "body:1:"), (b"[]", 400, None, "object"), (b'{"model": "\xff"}', 400, None, "body:1:"),
             (b'{"model": 1, "model": 2}', 400, None, "twice"), (b"[" * 100000, 400, None, ""),
             ({**chat, "model": "none"}, 404, "model", "none"), ({**chat, "model": ""}, 400, "model", ""), ({**chat, "model": None}, 400, "model", "model"),
             ({**chat, "messages": [{"role": "user", "content": "word " * 600}]}, 400, None, "512"),
             ({**chat, "max_tokens": -1}, 400, "max_tokens", ""),
             ({**chat, "max_tokens": 1.5}, 400, "max_tokens", ""), ({**chat, "temperature": 9}, 400, "temperature", ""),
             ({**chat, "temperature": "warm"}, 400, "temperature", ""), ({**chat, "top_p": 2}, 400, "top_p", ""), ({**chat, "seed": "x"}, 400, "seed", ""),
             ({**chat, "n": 0}, 400, "n", ""), ({**chat, "stop": 5}, 400, "stop", ""), ({**chat, "stream": "yes"}, 400, "stream", ""),
             ({**chat, "logprobs": 3}, 400, "logprobs", ""), ({**chat, "top_logprobs": 99, "logprobs": True}, 400, "top_logprobs", ""),
             ({**chat, "logit_bias": {"1": 1000}}, 400, "logit_bias", ""), ({**chat, "logit_bias": {"99999999": 1}}, 400, "logit_bias", ""),
             ({**chat, "response_format": {"type": "yaml"}}, 400, "response_format.type", "json_schema"), ({**chat, "tools": {}}, 400, "tools", ""),
             ({**chat, "messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role", "robot"),
             ({**chat, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "messages[0].content[0].type", "image_url")]
    for body, status, param, says in cases:
        got, answer = ask(address, body)
        error = answer.get("error", {})
        shown = body if isinstance(body, dict) else body[:60]
        assert got == status, (shown, got, answer)
        assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 600, (shown, answer)
        assert says in error["message"] and (param is None or (error["param"] or "").startswith(param)), (shown, answer)


def test_port_in_use(place, tiny):
    assert place.run("key", "create", "name").returncode == 0  # makes the database, which stays
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        place.refused("serve", "--model", tiny, "--port", other.getsockname()[1], says=[f"port {other.getsockname()[1]} is in use", "another port"])
