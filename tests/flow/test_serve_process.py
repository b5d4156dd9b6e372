"""`penstock serve` as a process: starting, ports, draining, overload, keys, budgets, being killed."""
import http.client
import http.server
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading

import pytest

from test_serve_http import HELLO, endless, error_of, read_some, send


def ask(one, model, key=None, **more):
    headers = {"authorization": "Bearer " + key} if key else {}
    return one.request("/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 4, "temperature": 0, **more}, headers=headers)


def start_failing(penstock, home, *arguments):
    return subprocess.run([penstock, "serve", *map(str, arguments)], capture_output=True, text=True, timeout=120, env={**os.environ, "PENSTOCK_HOME": str(home)})


# ---- starting ----


def test_hello_line_can_be_run(serve, smollm2, model):
    one = serve("--model", smollm2)
    assert one.hello.startswith(f"serving {model} at {one.url}/v1; try: curl ")
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    command = one.hello.split("try: ", 1)[1].replace("curl ", "curl -s ")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_port_in_use(penstock, home, smollm2):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = start_failing(penstock, home, "--model", smollm2, "--port", port)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"port {port} is in use" in done.stderr


def test_nothing_to_serve(penstock, home):
    done = start_failing(penstock, home, "--port", 0)
    assert done.returncode == 2 and "--model" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--model", "/no/such.gguf"), ("--model", "no-such-model"), ("--plan", "no-such-plan"), ("--port", "70000"), ("--kv", "f7")])
def test_bad_arguments(penstock, home, smollm2, arguments):
    done = start_failing(penstock, home, "--port", 0, *(("--model", smollm2) if arguments[0] == "--kv" else ()), *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("penstock: "), done.stderr


def test_home_that_is_a_file(penstock, tmp_path, smollm2):
    (tmp_path / "file").write_text("x")
    done = start_failing(penstock, tmp_path / "file", "--port", 0, "--model", smollm2)
    assert done.returncode == 2 and str(tmp_path / "file") in done.stderr and done.stderr.count("\n") == 1


def test_as_an_ordinary_user(serve, penstock, smollm2, model):
    if os.geteuid() != 0:
        pytest.skip("not root: every other test here runs as an ordinary user")
    nobody = pwd.getpwnam("nobody")
    place = tempfile.mkdtemp(prefix="penstock-nobody-")  # program and models may lie where nobody may not go
    try:
        os.chmod(place, 0o755)
        program, file, home = os.path.join(place, "penstock"), os.path.join(place, model + ".gguf"), os.path.join(place, "home")
        for source, copy, mode in ((penstock, program, 0o755), (smollm2, file, 0o644)):
            shutil.copyfile(source, copy)
            os.chmod(copy, mode)
        os.mkdir(home, 0o700)
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        one = serve("--model", file, home=home, user="nobody", program=program)
        assert ask(one, model)[0] == 200
        database = os.stat(os.path.join(home, "penstock.db"))
        assert database.st_uid == nobody.pw_uid and stat.S_IMODE(database.st_mode) == 0o600
        assert one.stop() == 0
    finally:
        shutil.rmtree(place)


# ---- the end ----


def test_drain_finishes_what_is_in_flight(serve, smollm2, model):
    one = serve("--model", smollm2, "--slots", 1, "--drain-ms", 600000)
    first = send(one.port, endless(model))
    read_some(first)
    second = send(one.port, endless(model, max_tokens=5))  # waits for the one slot: it cannot be over before the signal
    one.until(lambda: one.metric("penstock_engine_queued") == 1, "the second in the queue")
    one.process.send_signal(signal.SIGTERM)
    one.until(lambda: b'"draining"' in probe(one.port), "the drain seen at /health")
    refused = ask(one, model)
    assert error_of(refused, 503)["code"] == "draining" and int(refused[1]["retry-after"]) > 0
    first.close()
    got = b""
    while b"[DONE]" not in got:
        got += read_some(second)
    assert got.count(b'"finish_reason":"length"') == 1
    second.close()
    assert one.process.wait(timeout=300) == 0


def probe(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=300) as peer:
            peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return peer.recv(65536)
    except OSError:
        return b""


def test_second_signal_cuts(serve, smollm2, model):
    one = serve("--model", smollm2, "--drain-ms", 600000)
    peer = send(one.port, endless(model))
    read_some(peer)
    one.process.send_signal(signal.SIGTERM)
    one.until(lambda: b'"draining"' in probe(one.port), "the drain")
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(timeout=300) == 0
    got = b""
    try:
        while True:
            more = peer.recv(65536)
            if not more:
                break
            got += more
    except ConnectionResetError:
        pass
    assert b"[DONE]" not in got, "an answer that was cut does not look whole"


def test_deadline_cuts(serve, smollm2, model):
    one = serve("--model", smollm2, "--drain-ms", 50)
    peer = send(one.port, endless(model))
    read_some(peer)
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(timeout=300) == 0
    peer.close()


def test_a_closed_terminal_drains(serve, smollm2, model):
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        pytest.skip("SIGHUP is ignored here (nohup)")
    one = serve("--model", smollm2)
    peer = send(one.port, endless(model, max_tokens=40))
    read_some(peer)
    assert one.stop(signal.SIGHUP) == 0
    text = b""
    while more := peer.recv(65536):
        text += more
    assert b"[DONE]" in text


def test_an_idle_server_ends_at_once(serve, smollm2):
    one = serve("--model", smollm2, "--drain-ms", 600000)
    assert one.stop() == 0


# ---- overload ----


def test_queue_full_is_429(serve, smollm2, model):
    one = serve("--model", smollm2, "--slots", 1, "--queue", 1)
    peers = [send(one.port, endless(model, seed=0))]
    one.until(lambda: one.metric("penstock_engine_running") == 1, "one running") # until then it fills the queue itself
    peers.append(send(one.port, endless(model, seed=1)))
    one.until(lambda: one.metric("penstock_engine_queued") == 1, "one waiting")
    answer = ask(one, model)
    error = error_of(answer, 429)
    assert error["code"] == "rate_limit_exceeded" and error["type"] == "rate_limit_error" and int(answer[1]["retry-after"]) >= 1
    for peer in peers:
        peer.close()
    one.until(lambda: one.metric("penstock_requests_open") == 0, "rest")
    assert ask(one, model)[0] == 200


def test_too_many_open_is_503(serve, smollm2, model):
    one = serve("--model", smollm2, "--max-open", 2)
    peers = [send(one.port, endless(model, seed=i)) for i in range(2)]
    for peer in peers:
        read_some(peer)
    answer = ask(one, model)
    assert error_of(answer, 503)["code"] == "overloaded" and int(answer[1]["retry-after"]) >= 1
    for peer in peers:
        peer.close()


def test_two_hundred_streams(serve, smollm2, model):
    one = serve("--model", smollm2, "--slots", 16)
    texts, failures = [None] * 200, []

    def read(i):
        try:
            peer = send(one.port, {"model": model, "messages": [{"role": "user", "content": f"Say {i}."}], "max_tokens": 3, "temperature": 0, "stream": True})
            got = b""
            while b"[DONE]" not in got:
                got += read_some(peer)
            texts[i] = got
            peer.close()
        except Exception as error:
            failures.append(f"{i}: {error!r}")

    threads = [threading.Thread(target=read, args=(i,)) for i in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and all(t.startswith(b"HTTP/1.1 200 ") for t in texts), failures[:3]
    one.until(lambda: one.metric("penstock_open_calls") == 0, "no call left")


# ---- keys and money ----


def test_keys(serve, cli, smollm2, model):
    key = cli("key", "create", "app").stdout.strip()
    one = serve("--model", smollm2, "--require-key")
    missing = ask(one, model)
    assert error_of(missing, 401)["code"] == "missing_api_key" and missing[1]["www-authenticate"] == "Bearer"
    assert error_of(ask(one, model, key="sk-something"), 401)["code"] == "invalid_api_key"
    assert error_of(ask(one, model, key=key[:-1] + ("0" if key[-1] != "0" else "1")), 401)["code"] == "invalid_api_key"
    assert error_of(one.request("/v1/models"), 401)
    assert error_of(one.request("/metrics"), 401)
    assert one.request("/health")[0] == 200
    assert ask(one, model, key=key)[0] == 200
    cli("key", "disable", "app")
    assert error_of(ask(one, model, key=key), 401)["code"] == "invalid_api_key"


def test_loopback_needs_no_key_but_a_wrong_one_of_ours_is_refused(serve, cli, smollm2, model):
    key = cli("key", "create", "app").stdout.strip()
    one = serve("--model", smollm2)
    assert ask(one, model)[0] == 200 and ask(one, model, key="sk-dummy")[0] == 200 and ask(one, model, key=key)[0] == 200
    assert ask(one, model, key="pst-" + "0" * 65)[0] == 401


def test_loopback_on_behalf_of_others_needs_a_key(serve, cli, smollm2, model):
    """A proxy on this machine, or a page of another site in a browser on it, is not a caller from here."""
    key = cli("key", "create", "app").stdout.strip()
    one = serve("--model", smollm2)

    def status(headers):
        body = {"model": model, "messages": HELLO, "max_tokens": 1}
        return one.request("/v1/chat/completions", body, headers={"content-type": "text/plain", **headers})[0]

    for headers in ({"origin": "https://example.com"}, {"origin": "null"}, {"origin": "http://localhost.example.com"}, {"x-forwarded-for": "203.0.113.9"}, {"forwarded": "for=203.0.113.9"},
                    {"host": "evil.example"}, {"host": "evil.example:8080"}):  # a name that was led here
        assert status(headers) == 401, headers
        assert status({**headers, "authorization": "Bearer " + key}) == 200, headers
    for origin in ("http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"):
        assert status({"origin": origin}) == 200, origin
    for host in ("localhost", "localhost:1", "[::1]:80"):
        assert status({"host": host}) == 200, host


def test_budget(serve, cli, smollm2, model):
    import openai

    cli("settings", "machine", "3600")  # a dollar a second
    key = cli("key", "create", "app", "--total", "0.000001").stdout.strip()
    one = serve("--model", smollm2)
    client = openai.OpenAI(base_url=one.url + "/v1", api_key=key, max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=model, messages=HELLO, max_tokens=4)
    assert caught.value.code == "insufficient_quota" and caught.value.type == "insufficient_quota"
    cli("key", "limit", "app", "--total", "10000")
    assert client.chat.completions.create(model=model, messages=HELLO, max_tokens=4).choices
    one.stop()
    (row,) = json.loads(cli("key", "list", "--json").stdout)
    assert 0 < float(row["spent_total_usd"]) < 100 and row["open_reservations"] == 0


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_hammered_budget_holds(serve, cli, smollm2, model, tmp_path, where):
    """Many callers at once share one small budget: each is answered or told so, the sum stays below the limit, and the server lives."""
    if where == "remote":
        far_home = tmp_path / "far"
        far_home.mkdir()
        cli("settings", "provider", "far", serve("--model", smollm2, home=far_home).url + "/v1")
        cli("settings", "price", "far", "*", "--input", "1", "--output", "10")
    cli("settings", "machine", "3600")
    one = serve("--model", smollm2)
    name, limit = ("far/" + model, "0.003") if where == "remote" else (model, "10")
    key = cli("key", "create", "app", "--total", limit).stdout.strip()
    seen = []

    def caller(i):
        connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=300)
        for k in range(12):
            body = {"model": name, "messages": HELLO, "max_tokens": 4, "temperature": 0, "stream": (i + k) % 2 == 0}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": "Bearer " + key})
            answer = connection.getresponse()
            text = answer.read().decode()
            seen.append((answer.status, "insufficient_quota" in text))

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(16)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert len(seen) == 16 * 12 and set(seen) == {(200, False), (429, True)}, set(seen)
    one.until(lambda: one.metric("penstock_open_calls") == 0, "rest")
    assert one.stop() == 0
    (row,) = json.loads(cli("key", "list", "--json").stdout)
    assert 0 < float(row["spent_total_usd"]) <= float(limit) and row["open_reservations"] == 0


def test_reserves_survive_a_kill(serve, cli, smollm2, model):
    """What was open when the process was killed counts in full, and is open no more after the next start."""
    cli("settings", "machine", "3600")
    key = cli("key", "create", "app", "--total", "1000000").stdout.strip()
    one = serve("--model", smollm2)
    data = json.dumps(endless(model)).encode()
    peer = socket.create_connection(("127.0.0.1", one.port), timeout=300)
    peer.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" % (key.encode(), len(data)) + data)
    read_some(peer)
    one.process.kill()
    one.process.wait()
    peer.close()
    two = serve("--model", smollm2)
    assert ask(two, model, key=key)[0] == 200
    two.stop()
    (row,) = json.loads(cli("key", "list", "--json").stdout)
    assert row["open_reservations"] == 0 and float(row["reserved_usd"]) == 0 and float(row["spent_total_usd"]) > 0


def test_settings(cli):
    assert "no price set" in cli("settings").stdout
    cli("settings", "machine", "0.085")
    cli("settings", "provider", "acme", "https://api.acme.example/v1", "ACME_KEY")
    cli("settings", "price", "acme", "big", "--input", "0.15", "--output", "0.6", "--cached", "0.075")
    shown = json.loads(cli("settings", "list", "--json").stdout)
    assert shown == {
        "machine_usd_per_hour": "0.085",
        "providers": [{"name": "acme", "base_url": "https://api.acme.example/v1", "key_env": "ACME_KEY"}],
        "prices": [{"provider": "acme", "model": "big", "input_usd": "0.15", "cached_input_usd": "0.075", "output_usd": "0.6"}],
    }
    for bad in (("price", "nobody", "x", "--input", "1", "--output", "1"), ("machine", "-1"), ("machine", "x"), ("provider", "a b", "https://x/v1"), ("provider", "a", "ftp://x"), ("bogus",), ("price", "acme", "x")):
        done = cli("settings", *bad, ok=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, (bad, done.stderr)


# ---- the books ----


def test_books_and_feedback_can_be_listed(serve, cli, smollm2, model):
    assert "no requests" in cli("requests").stdout and "no feedback" in cli("feedback").stdout
    cli("settings", "machine", "0.1")
    one = serve("--model", smollm2, "--keep-content")
    answer = json.loads(ask(one, model)[2])
    given = {"completion_id": answer["id"], "thumbs": "down", "score": 0.25, "correction": "Hello, \u00e9!", "outcome": "escalated"}
    assert one.request("/v1/feedback", given)[0] == 200
    assert one.request("/v1/feedback", {"completion_id": answer["id"], "thumbs": "up"})[0] == 200
    assert one.stop() == 0
    (row,) = json.loads(cli("requests", "--json").stdout)
    assert row["completion_id"] == answer["id"] and row["status"] == 200 and row["finish"] == answer["choices"][0]["finish_reason"]
    assert row["prompt_tokens"] == answer["usage"]["prompt_tokens"] and row["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert float(row["cost_usd"]) > 0 and HELLO[0]["content"] in row["input"]
    told = cli("requests").stdout
    assert answer["id"] in told and f"all 1: 0 failed, {row['prompt_tokens']} prompt tokens" in told
    first, second = json.loads(cli("feedback", "--json").stdout)
    del first["time_ms"]
    assert first == {**given, "retry": False, "abandon": False} and second["thumbs"] == "up" and second["score"] is None
    assert "escalated" in cli("feedback", answer["id"]).stdout


# ---- plans ----


def plan_for(model_path, workload="greeter", labels=("yes", "no"), **engine):
    return {
        "schema": 1,
        "workload": workload,
        "labels": list(labels),
        "engines": {"e1": {"model": model_path, "slots": 4, **engine}},
        "root": {
            "op": "local",
            "engine": "e1",
            "layout": "chat",
            "prompt": {"name": "p", "system": "Answer yes or no."},
            "constraint": "labels",
            "sampling": {"temperature": 0},
            "max_tokens": 8,
        },
    }


def test_plan_is_put_in_force(serve, smollm2, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_for(smollm2)))
    one = serve("--plan", path)
    assert "serving greeter at" in one.hello
    for name in ("greeter", "default"):
        answer = json.loads(ask(one, name)[2])
        assert answer["choices"][0]["message"]["content"] in ("yes", "no"), answer
    assert {m["id"] for m in json.loads(one.request("/v1/models")[2])["data"]} == {"greeter", "default"}
    assert error_of(ask(one, "other"), 404)["code"] == "model_not_found"
    assert one.stop() == 0
    # Its plan stays in force: a later server finds it, by its name, in the store.
    two = serve("--plan", "greeter")
    assert json.loads(ask(two, "greeter")[2])["choices"][0]["message"]["content"] in ("yes", "no")


def test_key_with_a_workload_takes_unknown_models(serve, cli, smollm2, model, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_for(smollm2)))
    key = cli("key", "create", "app", "--workload", "greeter").stdout.strip()
    one = serve("--plan", path, "--model", smollm2)
    answer = json.loads(ask(one, "gpt-4o-mini", key=key)[2])
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")
    assert error_of(ask(one, "gpt-4o-mini"), 404)
    plain = json.loads(ask(one, model, key=key)[2])
    assert plain["choices"][0]["message"]["content"] not in ("yes", "no")


def test_bad_plan(penstock, home, smollm2, tmp_path):
    path = tmp_path / "plan.json"
    for text, place in ((json.dumps({**plan_for(smollm2), "bogus": 1}), "bogus"), ("{", "plan.json:1:"), (json.dumps(plan_for("/no/such.gguf")), "/no/such.gguf")):
        path.write_text(text)
        done = start_failing(penstock, home, "--port", 0, "--plan", path)
        assert done.returncode == 2 and place in done.stderr and done.stderr.count("\n") == 1, done.stderr
    serving = start_failing(penstock, home, "--port", 0, "--plan", "greeter")
    assert serving.returncode == 2, "a plan that could not be served was not put in force"


def test_provider_behind_the_server(serve, cli, smollm2, model, tmp_path):
    """A second server is the provider: its model is named provider/model, costs by the token, and its errors are passed on."""
    far_home = tmp_path / "far"
    far_home.mkdir()
    far = serve("--model", smollm2, home=far_home)
    cli("settings", "provider", "far", far.url + "/v1")
    cli("settings", "price", "far", model, "--input", "1", "--output", "10")
    near = serve("--model", smollm2)
    assert f"far/{model}" in {m["id"] for m in json.loads(near.request("/v1/models")[2])["data"]}
    own, passed = (json.loads(ask(near, name)[2]) for name in (model, "far/" + model))
    assert passed["choices"][0]["message"]["content"] == own["choices"][0]["message"]["content"]
    usage = passed["usage"]
    cost = next(v for k, v in near.metrics().items() if k.startswith("penstock_cost_usd_total") and 'target="far"' in k)
    assert abs(cost - (usage["prompt_tokens"] * 1e-6 + usage["completion_tokens"] * 1e-5)) < 1e-9
    got = near.request("/v1/chat/completions", {"model": "far/" + model, "messages": HELLO, "max_tokens": 5, "temperature": 0, "stream": True})[2]
    assert got.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in got
    peer = send(near.port, endless("far/" + model))
    read_some(peer)
    peer.close()
    far.until(lambda: far.metric("penstock_engine_running") == 0, "the provider's work stopped too")
    assert far.stop() == 0
    assert error_of(ask(near, "far/" + model), 502)["type"] == "upstream_error"


def test_what_a_provider_says_is_not_logged(serve, cli):
    """Its words may quote the prompt: they are for the client, whatever is kept."""

    class Quoting(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = json.dumps({"error": {"message": "cannot do: " + asked["messages"][0]["content"]}}).encode()
            self.send_response(int(asked["model"]))
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    far = http.server.HTTPServer(("127.0.0.1", 0), Quoting)
    threading.Thread(target=far.serve_forever, args=(0.05,), daemon=True).start()
    cli("settings", "provider", "far", f"http://127.0.0.1:{far.server_port}/v1")
    cli("settings", "price", "far", "*", "--input", "1", "--output", "10")
    near = serve()
    statuses = 500, 504, 200
    for status in statuses:
        got = near.request("/v1/chat/completions", {"model": f"far/{status}", "messages": [{"role": "user", "content": "a word of mine"}]})
        assert got[0] in (502, 504) and "cannot do: a word of mine" in got[2]
    near.stop()
    far.shutdown()
    far.server_close()
    log = "".join(near.log)
    assert "a word of mine" not in log, log
    assert all(f"provider=far upstream_status={status}" in log for status in statuses), log


def test_a_provider_alone_can_be_served(serve, cli, smollm2, model, tmp_path):
    """No model of its own, and one price for all of a provider's models."""
    far_home = tmp_path / "far"
    far_home.mkdir()
    far = serve("--model", smollm2, home=far_home)
    cli("settings", "provider", "far", far.url + "/v1")
    cli("settings", "price", "far", "*", "--input", "1", "--output", "10")
    near = serve()
    assert near.hello.startswith("serving far/* at ") and '"model":"far/MODEL"' in near.hello
    assert ask(near, "far/" + model)[0] == 200
    assert error_of(ask(near, "far/no-such-model"), 404)
