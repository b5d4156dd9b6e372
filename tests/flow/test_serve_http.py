"""`penstock serve` below the clients: errors, cancelling, slow and broken peers, feedback, metrics, the log."""
import json
import socket
import struct
import subprocess
import time

import pytest

HELLO = [{"role": "user", "content": "Say hello."}]
LONG = [{"role": "user", "content": "Write a very long story about a river."}]


def error_of(answer, status):
    assert answer[0] == status, answer
    error = json.loads(answer[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def endless(model, **more):
    """A request that takes long: its end is the client's business."""
    return {"model": model, "messages": LONG, "max_tokens": 4000, "temperature": 1, "seed": 1, "stream": True, "logit_bias": {"2": -100, "0": -100}, **more}


def send(port, body, path="/v1/chat/completions"):
    """A raw connection that has sent a request."""
    data = json.dumps(body).encode()
    peer = socket.create_connection(("127.0.0.1", port), timeout=300)
    peer.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data)
    return peer


def read_some(peer):
    data = peer.recv(65536)
    assert data
    return data


# ---- errors ----


def test_unknown_path(served):
    error = error_of(served.request("/v1/nothing", {}), 404)
    assert error["code"] == "unknown_url" and "/v1/chat/completions" in error["message"]
    error_of(served.request("/"), 404)


@pytest.mark.parametrize("path,method,allowed", [("/v1/chat/completions", "GET", "POST"), ("/v1/models", "DELETE", "GET"), ("/health", "POST", "GET")])
def test_wrong_method(served, path, method, allowed):
    answer = served.request(path, method=method, body={} if method == "POST" else None)
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer[1]["allow"] == allowed


def test_bad_json_says_where(served):
    error = error_of(served.request("/v1/chat/completions", raw=b'{"model": "x",\n "messages": [}'), 400)
    assert "body:2:15" in error["message"], error
    assert error["type"] == "invalid_request_error"
    error_of(served.request("/v1/chat/completions", raw=b""), 400)
    error_of(served.request("/v1/chat/completions", raw=b"[]"), 400)
    error_of(served.request("/v1/chat/completions", raw=b'{"model": "\xff"}'), 400)


@pytest.mark.parametrize(
    "change,param",
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"model": None}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"top_p": "x"}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_bad_fields_are_named(served, model, change, param):
    error = error_of(served.request("/v1/chat/completions", {"model": model, "messages": HELLO, **change}), 400)
    assert error["param"] and error["param"].startswith(param), error


def test_too_large_a_body(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=300) as peer:
        peer.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
        answer = peer.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ") and b'"request_too_large"' in answer


def test_not_http(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=300) as peer:
        peer.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = peer.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"error"' in answer


def test_token_out_of_range(served, model):
    error = error_of(served.request("/v1/completions", {"model": model, "prompt": [1, 99999999]}), 400)
    assert "99999999" in error["message"] or "token" in error["message"]


# ---- the client goes ----


def test_client_gone_stops_the_work(served, model):
    before = served.metrics()
    peer = send(served.port, endless(model))
    while b"data: " not in read_some(peer):
        pass
    assert served.metric("penstock_engine_running") == 1
    peer.close()
    served.until(lambda: served.metric("penstock_engine_running") == 0, "the engine at rest after the client has gone")
    served.until(lambda: served.metric("penstock_requests_open") == 0, "the request closed")
    after = served.metrics()
    key = "penstock_requests_total{endpoint=\"/v1/chat/completions\",status=\"499\"}"
    assert after[key] == before.get(key, 0) + 1
    assert after["penstock_cancelled_total"] == before["penstock_cancelled_total"] + 1
    made = after["penstock_engine_completion_tokens_total"] - before["penstock_engine_completion_tokens_total"]
    assert made < 3900, "the answer was not computed to its end"


@pytest.mark.parametrize("how", ["reset", "half", "whole"])
def test_other_ways_to_go(served, model, how):
    before = served.metric("penstock_cancelled_total")
    peer = send(served.port, endless(model, stream=how != "whole"))
    served.until(lambda: served.metric("penstock_engine_running") == 1, "work")
    if how == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    elif how == "half":
        peer.shutdown(socket.SHUT_WR)
    else:
        peer.close()
    served.until(lambda: served.metric("penstock_engine_running") == 0, "rest")
    served.until(lambda: served.metric("penstock_cancelled_total") == before + 1, "the cancel in the books")
    peer.close()


def test_the_openai_client_cancels(served, model):
    import openai

    client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
    with client.chat.completions.create(**{**endless(model), "logit_bias": {"2": -100, "0": -100}}) as stream:
        for i, _ in enumerate(stream):
            if i == 3:
                break
    served.until(lambda: served.metric("penstock_engine_running") == 0, "rest")


def test_many_go_at_once(served, model):
    peers = [send(served.port, endless(model, seed=i)) for i in range(20)]
    served.until(lambda: served.metric("penstock_requests_open") >= 20, "20 requests")
    for peer in peers:
        peer.close()
    served.until(lambda: served.metric("penstock_requests_open") == 0 and served.metric("penstock_open_calls") == 0, "all closed")
    m = served.metrics()
    assert m["penstock_engine_running"] == 0 and m["penstock_engine_queued"] == 0
    assert m['penstock_kv_pages{state="used"}'] <= m['penstock_kv_pages{state="cached"}']


# ---- slow and broken peers ----


def test_slow_headers_do_not_hold_up_others(served, model):
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=300) for _ in range(50)]
    for peer in slow:
        peer.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A")
    assert served.request("/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 2})[0] == 200
    for peer in slow:
        peer.close()


def test_a_reader_that_stops_reading(served, model):
    """Its answer is kept small, and others are served meanwhile."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(("127.0.0.1", served.port))
    data = json.dumps(endless(model, logprobs=True, top_logprobs=20, max_tokens=200)).encode()
    peer.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    served.until(lambda: served.metric("penstock_engine_running") == 0, "the answer made")
    assert served.request("/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 2})[0] == 200
    got = b""
    while b"[DONE]" not in got:
        got += read_some(peer)
    events = [json.loads(line[6:]) for line in dechunk(got).decode().split("\n\n") if line.startswith("data: {")]
    tokens = sum(len(e["choices"][0]["logprobs"]["content"]) for e in events if e["choices"] and e["choices"][0]["logprobs"])
    assert tokens == 200, "nothing was lost on the way"
    peer.close()


def dechunk(answer):
    body, out = answer.split(b"\r\n\r\n", 1)[1], b""
    while body:
        size, _, body = body.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            break
        out, body = out + body[:n], body[n + 2 :]
    return out


def test_keep_alive_and_pipelining(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=300) as peer:
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        got = b""
        while got.count(b'{"status":"ok"}') < 3:
            got += read_some(peer)


# ---- feedback ----


def test_feedback_round_trip(served, model):
    answer = json.loads(served.request("/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 4})[2])
    given = {"completion_id": answer["id"], "thumbs": "down", "score": 0.25, "outcome": "escalated"}
    status, _, text = served.request("/v1/feedback", given)
    assert status == 200 and json.loads(text)["completion_id"] == answer["id"]
    for verb in ({"thumbs": "up"}, {"retry": True}, {"abandon": True}):
        assert served.request("/v1/feedback", {"completion_id": answer["id"], **verb})[0] == 200
    correction = served.request("/v1/feedback", {"completion_id": answer["id"], "correction": "Hello!"})  # texts are not kept here
    assert error_of(correction, 400)["param"] == "correction"


def test_feedback_errors(served):
    assert error_of(served.request("/v1/feedback", {"completion_id": "chatcmpl-none", "thumbs": "up"}), 404)["param"] == "completion_id"
    assert error_of(served.request("/v1/feedback", {"completion_id": "x", "thumbs": "sideways"}), 400)["param"] == "thumbs"
    error_of(served.request("/v1/feedback", {"completion_id": "x"}), 400)


# ---- health, metrics, log ----


def test_health(served):
    status, headers, text = served.request("/health")
    assert status == 200 and json.loads(text) == {"status": "ok"} and headers["content-type"] == "application/json"


def test_metrics_add_up(served, model):
    before = served.metrics()
    answers = [json.loads(served.request("/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 9, "ignored": i})[2]) for i in range(3)]
    stream = served.request("/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 9, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}})[2]
    usages = [a["usage"] for a in answers] + [json.loads(stream.strip().split("\n\n")[-2][6:])["usage"]]
    after = served.metrics()

    def grown(name):
        return sum(v - before.get(k, 0) for k, v in after.items() if k.startswith(name))

    assert grown('penstock_requests_total{endpoint="/v1/chat/completions",status="200"}') == 4
    assert grown("penstock_answers_total") == 4
    for kind in ("prompt", "completion"):
        assert sum(v - before.get(k, 0) for k, v in after.items() if k.startswith("penstock_tokens_total{") and f'kind="{kind}"' in k) == sum(u[kind + "_tokens"] for u in usages)
    assert grown("penstock_time_to_first_token_seconds_count") == 4
    assert grown("penstock_queue_seconds_count") == 4
    assert grown("penstock_inter_token_seconds_count") in range(usages[-1]["completion_tokens"] - 2, usages[-1]["completion_tokens"] + 1)
    for name in ("time_to_first_token", "inter_token", "time_per_output_token", "queue", "request_duration"):
        buckets = [(k, v) for k, v in after.items() if k.startswith(f"penstock_{name}_seconds_bucket")]
        values = [v for _, v in buckets]
        assert values == sorted(values) and buckets[-1][0].endswith('le="+Inf"}')
        assert values[-1] == after[f"penstock_{name}_seconds_count"]


def test_log_has_a_line_and_no_prompt(served, model):
    secret = "the-prompt-must-not-be-logged"
    answer = json.loads(served.request("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": secret}], "max_tokens": 3})[2])
    served.until(lambda: any("id=" + answer["id"] in line for line in served.log), "the log line")
    line = next(line for line in served.log if "id=" + answer["id"] in line)
    for part in ("status=200", "path=/v1/chat/completions", "prompt_tokens=", f"completion_tokens={answer['usage']['completion_tokens']}", "cost_usd=", "ttft_ms="):
        assert part in line, line
    assert not any(secret in line for line in served.log)


def test_prometheus_text_is_well_formed(served):
    text = served.request("/metrics")[2]
    seen, current = set(), None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split()[2]
            assert current not in seen, f"{current} twice"
            seen.add(current)
        elif not line.startswith("# TYPE "):
            name = line.split("{")[0].split(" ")[0]
            assert name == current or name in (current + "_bucket", current + "_sum", current + "_count"), line
            float(line.rsplit(" ", 1)[1])
