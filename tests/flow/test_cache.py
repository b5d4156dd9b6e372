"""Answers given again, through the real server and the unmodified client: which are, whose record they are, and what ends them."""
import json
import signal

import openai
import pytest

QUESTION = "When will my parcel arrive?"


@pytest.fixture
def plan(smollm2, tmp_path):
    """plan(ttl_s or None, temperature) -> a plan file of the workload desk."""

    def write(ttl=None, temperature=0):
        one = {"schema": 1, "workload": "desk", "engines": {"e1": {"model": smollm2, "slots": 4}},
               "root": {"op": "local", "engine": "e1", "prompt": {"name": "p", "instruction": "Answer in a few words."}, "sampling": {"temperature": temperature}, "max_tokens": 12}}
        if ttl:
            one["cache"] = {"ttl_s": ttl}
        path = tmp_path / f"plan-{ttl}-{temperature}.json"
        path.write_text(json.dumps(one), encoding="utf-8")
        return path

    return write


def ask(one, text=QUESTION, headers=None, **more):
    client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0, timeout=300)
    more = {"stop": ["."], "model": "desk", **more}
    answer = client.chat.completions.create(messages=[{"role": "user", "content": text}], extra_headers=headers, **more)
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices) if more.get("stream") else answer


def targets(cli):
    return [row["target"] for row in reversed(json.loads(cli("requests", "--limit", 1000, "--json").stdout))]


def test_the_same_question_is_given_the_same_answer(serve, cli, plan):
    one = serve("--plan", plan(3600), "--keep", "content")
    first = ask(one)
    if first.choices[0].finish_reason != "stop":
        pytest.skip("the model did not end its answer")
    text = first.choices[0].message.content
    again = ask(one)
    assert again.choices[0].message.content == text and again.choices[0].finish_reason == "stop"
    assert again.usage.total_tokens == 0 and again.id != first.id
    assert ask(one, stream=True) == text
    made = [ask(one, headers={"Cache-Control": "no-cache"}), ask(one, text=QUESTION + " "), ask(one, stop=["!", "."]), ask(one, temperature=0.5),
            ask(one, logprobs=True), ask(one, n=2), ask(one, frequency_penalty=0.5), ask(one, max_tokens=3)]
    assert made[0].choices[0].message.content == text and all(answer.usage.prompt_tokens > 0 for answer in made)
    assert one.stop() == 0
    assert targets(cli) == ["local", "cache", "cache"] + ["local"] * len(made)
    rows = json.loads(cli("requests", "--limit", 2, "--json").stdout)
    assert all(row["status"] == 200 for row in rows)

    two = serve("--plan", "desk", "--keep", "metadata")  # kept answers outlive the process; who keeps nothing of his own may be told
    assert ask(two).choices[0].message.content == text
    assert two.stop(signal.SIGKILL) == -signal.SIGKILL

    state = json.loads(cli("cache", "desk", "--json").stdout)
    assert state["ttl_s"] == 3600 and state["given_again"] >= 2 and state["asked_before"] >= 2
    assert "word for word" in cli("cache", "desk", "--hours", 2).stdout
    three = serve("--plan", "desk", "--keep", "content")  # another plan: its own answers
    assert ask(three).usage.prompt_tokens > 0 and ask(three).usage.total_tokens == 0
    assert three.stop() == 0
    off = json.loads(cli("cache", "desk", "--off", "--json").stdout)
    assert off["ttl_s"] == 0
    four = serve("--plan", "desk", "--keep", "content")
    assert ask(four).usage.prompt_tokens > 0
    assert four.stop() == 0


def test_what_is_not_kept_or_was_erased_is_not_given_again(serve, cli, home, plan):
    one = serve("--plan", plan(3600), "--keep", "content")
    assert ask(one, headers={"x-penstock-keep": "metadata"}).usage.prompt_tokens > 0
    first = ask(one, user="ann")
    assert first.usage.prompt_tokens > 0
    if first.choices[0].finish_reason != "stop":
        pytest.skip("the model did not end its answer")
    assert ask(one, user="bob").usage.total_tokens == 0
    for subject in ("ann", "bob"):
        cli("data", "delete", "--subject", subject)
    assert ask(one).usage.prompt_tokens > 0
    drawn = serve("--plan", plan(3600, 1), "--keep", "content")
    assert ask(drawn).usage.prompt_tokens > 0 and ask(drawn).usage.prompt_tokens > 0 and ask(drawn, temperature=0).usage.prompt_tokens > 0
    for server in (one, drawn):
        assert server.stop() == 0


def test_bad_arguments(cli):
    assert "no plan in force" in cli("cache", "nobody", ok=False).stderr
    assert cli("cache", "nobody", "--hours", 1, "--off", ok=False).returncode == 2
