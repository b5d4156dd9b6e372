"""Answers given again, through the real server, a real model and the unmodified client: byte-equal, at once, and only where that is allowed."""
import concurrent.futures
import hashlib
import json
import random
import signal
import statistics
import string
import threading
import time

import openai
import pytest

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def sha256(smollm2):
    with open(smollm2, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def plans(tmp_path, smollm2, sha256):
    """Two workloads: `desk` answers in a sentence, `mood` says a label (quickly, and always whole)."""

    def write(name, root, **more):
        engine = {"model": smollm2, "sha256": sha256, "context": 512, "slots": 4}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"schema": 1, "workload": name, "cache": {}, "engines": {"e1": engine}, "root": {"op": "local", "engine": "e1", **root}, **more}))
        return path

    desk = write("desk", {"max_tokens": 48, "prompt": {"name": "p", "system": "Answer in one short sentence."}})
    mood = write("mood", {"layout": "plain", "constraint": "labels", "max_tokens": 4, "prompt": {"name": "p", "input_key": "Text", "answer_key": "Mood"}}, labels=["good", "bad"])
    return ["--plan", desk, "--plan", mood]


def ask(server, workload, text, stream=False, key="none", headers=None, **more):
    """(text, what x-penstock-cache says, usage, seconds)"""
    messages = [{"role": "user", "content": text}]
    options = {"stream_options": {"include_usage": True}} if stream else {}
    said, usage = "", None
    with openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=300) as client:
        start = time.monotonic()
        raw = client.chat.completions.with_raw_response.create(model=workload, messages=messages, stream=stream, extra_headers=headers, **options, **more)
        if stream:
            for chunk in raw.parse():
                said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                usage = chunk.usage or usage
        else:
            answer = raw.parse()
            said, usage = answer.choices[0].message.content, answer.usage
        return said, raw.headers.get("x-penstock-cache"), usage, time.monotonic() - start


def settled(server):
    """Records are written behind the answers."""
    server.until(lambda: server.metric("penstock_store_pending_writes") == 0, "the books are written")


def test_a_hit_is_the_answer(serve, plans, cli):
    one = serve(*plans, "--keep", "content")
    first, cache, usage, _ = ask(one, "desk", QUESTION)
    assert cache == "miss" and "Paris" in first and usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    settled(one)
    for stream in (False, True):
        said, cache, again, _ = ask(one, "desk", QUESTION, stream=stream)
        assert (said, cache) == (first, "hit")
        assert (again.prompt_tokens, again.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
        assert again.prompt_tokens_details.cached_tokens == usage.prompt_tokens
    assert ask(one, "desk", QUESTION, logprobs=True)[:2] == (first, "bypass")
    assert ask(one, "desk", QUESTION, temperature=1)[1] == "bypass"
    for header in ("no-cache", "max-age=3, No-Store"):
        assert ask(one, "desk", QUESTION, headers={"Cache-Control": header})[:2] == (first, "bypass")
    for more in ({"stop": ["Paris"]}, {"max_tokens": 47}, {"temperature": 1, "seed": 3}, {"n": 2}):
        assert ask(one, "desk", QUESTION, **more)[1] == "miss", more
    assert ask(one, "desk", QUESTION + " ")[1] == "miss"
    settled(one)
    counts = {name: one.metrics()[f'penstock_answer_cache_total{{result="{name}"}}'] for name in ("hit", "miss", "bypass")}
    assert counts == {"hit": 2, "miss": 6, "bypass": 4}
    assert one.metric("penstock_answers_total") == 12
    assert 3 <= one.metric("penstock_answer_cache_entries") <= 6 # whole answers; chance decides where some of them end
    hits = [r for r in json.loads(cli("requests", "--json", "-n", "100").stdout) if r["target"] == "cache"]
    assert len(hits) == 2 and all(r["status"] == 200 and r["finish"] == "stop" and r["model"] for r in hits)
    with concurrent.futures.ThreadPoolExecutor(8) as pool: # the same at once: each is answered
        together = list(pool.map(lambda i: ask(one, "desk", "What is the capital of Italy?", stream=i % 2 == 1), range(8)))
    assert len({said for said, *_ in together}) == 1
    settled(one)
    again = [ask(one, "desk", "What is the capital of Italy?") for _ in range(10)]
    assert {(said, cache) for said, cache, *_ in again} == {(together[0][0], "hit")}
    computed = [ask(one, "desk", "What is the capital of Italy?", headers={"Cache-Control": "no-store"}) for _ in range(3)]
    assert statistics.median(seconds for *_, seconds in again) < statistics.median(seconds for *_, seconds in computed) / 2


def test_keys_and_consent(serve, plans, cli):
    keys = {name: json.loads(cli("key", "create", name, "--json", "--keep", keep).stdout)["key"] for name, keep in (("a", "content"), ("b", "content"), ("silent", "nothing"), ("books", "metadata"))}
    one = serve(*plans)
    for name, key in keys.items():
        for turn in range(2):
            cache = ask(one, "mood", "I like this.", key=key, user="ann")[1]
            assert cache == ("hit" if turn and name in "ab" else "miss"), (name, turn)
            settled(one)
    assert ask(one, "mood", "I like this.", key=keys["a"], user="bob", headers={"X-Penstock-Keep": "nothing"})[1] == "hit"
    cli("data", "delete", "--subject", "ann")
    for name in "ab":
        assert ask(one, "mood", "I like this.", key=keys[name], user="bob")[1] == "miss"
    assert "cache_without_content" in "".join(one.log)


def test_a_kill_spoils_nothing_and_a_restart_keeps(serve, plans):
    texts = [f"Number {i} is {'bad' if i % 3 else 'good'} for me." for i in range(400)]
    one = serve(*plans, "--keep", "content")
    truth = {}

    def flood():
        for text in texts:
            try:
                truth[text] = ask(one, "mood", text)[0]
            except openai.APIError:
                return

    thread = threading.Thread(target=flood)
    thread.start()
    one.until(lambda: len(truth) >= 20, "20 answers")
    one.stop(signal.SIGKILL)
    thread.join()
    assert len(truth) < len(texts), "the kill came too late to test anything"
    two = serve(*plans, "--keep", "content")
    caches = []
    for text, said in truth.items():
        again, cache, *_ = ask(two, "mood", text)
        assert again == said
        caches.append(cache)
    assert caches.count("hit") >= 10 # all but those whose record was on its way to the disk
    settled(two)
    assert all(ask(two, "mood", text)[:2] == (said, "hit") for text, said in truth.items())


@pytest.mark.full
def test_the_optimizer_counts_what_users_repeat(serve, plans, cli, tmp_path, smollm2):
    rng = random.Random(1) # texts that are no near-duplicates of each other
    words = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(400)]
    rows = [{"text": " ".join([*rng.sample(words, 6), label]), "label": label} for label in ("good", "bad") for _ in range(150)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli("import", tmp_path / "rows.jsonl", tmp_path / "mood")
    one = serve(*plans, "--keep", "content")
    for i in range(60): # twenty texts, three times each
        ask(one, "mood", rows[i % 20]["text"], headers={"Cache-Control": "no-store"} if i % 2 else None)
    settled(one)
    one.stop()
    found = json.loads(cli("optimize", tmp_path / "mood", "--model", smollm2, "--budget-minutes", 0.1, "--max-items", 40, "--json", ok=False).stdout)
    seen = found["evidence"]["cache"]
    assert (seen["requests"], seen["kept"]) == (60, 60) # and none of the many that the search asked
    assert seen["share"] == pytest.approx(40 / 60)
    assert seen["verdict"] == "in_plan" and found["plan"]["cache"]["max_entries"] == 100000 # as the plan in force
