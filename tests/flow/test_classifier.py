"""A choice task from its records to the served answer, without a model call: import, optimize, serve, ask, books."""
import json
import random

import pytest

WORDS = {
    "fruit": ["apple", "pear", "plum", "cherry", "quince", "grape", "melon", "fig"],
    "tool": ["hammer", "saw", "chisel", "plane", "drill", "wrench", "file", "clamp"],
    "bird": ["robin", "heron", "swift", "crane", "finch", "owl", "tern", "wren"],
    "metal": ["iron", "copper", "zinc", "nickel", "silver", "tin", "cobalt", "lead"],
}
PLAIN = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "ne", "pa", "ro", "su") for b in ("lim", "tor", "ven", "sat", "rak", "mun", "del", "fip")]


def texts(seed, n):
    """n texts of two words of a label among five of no label, no two of them near-duplicates."""
    rng = random.Random(seed)
    for _ in range(n):
        label = rng.choice(sorted(WORDS))
        words = rng.sample(WORDS[label], 2) + rng.sample(PLAIN, 5)
        rng.shuffle(words)
        yield " ".join(words), label


@pytest.fixture
def folder(cli, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in texts(1, 900)), encoding="utf-8")
    cli("import", path, tmp_path / "things")
    return tmp_path / "things"


@pytest.mark.full
def test_a_choice_task_is_served_without_a_model_call(cli, serve, smollm2, folder, home):
    done = cli("optimize", folder, "--model", smollm2, "--budget-minutes", 0.1, "--max-items", 40, "--promote", "--json")
    result = json.loads(done.stdout)
    evidence, plan = result["evidence"], result["plan"]
    assert result["verdict"] == "found", evidence["verification"]
    assert plan["root"]["op"] == "classifier" and not plan["engines"]
    # It was trained on the examples, on all of them, and on nothing else.
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert evidence["classifier"]["records"] == sum(i["part"] == "examples" for i in items) < len(items)
    assert (home / "files" / plan["root"]["artefact"]).is_file()
    assert evidence["plan"]["verify"]["quality"][0] > 0.95 and evidence["plan"]["choice"] == {"classifier": "alone"}
    tree = cli("explain", result["plan_hash"]).stdout
    assert "no model call is needed here" in tree and "nan" not in tree
    again = json.loads(cli("optimize", folder, "--replay", result["run"], "--json").stdout)
    assert again["plan_hash"] == result["plan_hash"]

    refused = cli("eval", folder, "--target", result["plan_hash"], "--part", "examples", ok=False)
    assert refused.returncode == 2 and "trained on the part examples" in refused.stderr
    sealed = json.loads(cli("eval", folder, "--target", result["plan_hash"], "--part", "sealed", "--json").stdout)
    assert sealed["targets"][0]["accepted"] >= 0.95 * sealed["targets"][0]["n"]

    one = serve("--plan", "things")
    right = 0
    for text, label in texts(2, 40):
        body = {"model": "things", "messages": [{"role": "user", "content": text}]}
        status, _, answer = one.request("/v1/chat/completions", body)
        answer = json.loads(answer)
        assert status == 200, answer
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["completion_tokens"] == answer["usage"]["total_tokens"] == 0
        assert answer["choices"][0]["finish_reason"] == "stop"
        right += answer["choices"][0]["message"]["content"] == label
    assert right >= 37
    status, _, stream = one.request("/v1/chat/completions", {**body, "stream": True, "logprobs": True, "n": 2})
    assert status == 200 and stream.count('"finish_reason":"stop"') == 2 and stream.rstrip().endswith("data: [DONE]"), stream
    status, _, text = one.request("/v1/chat/completions", {**body, "response_format": {"type": "json_object"}})
    assert status == 400, text
    assert one.metric("penstock_engines") == 0
    assert one.stop() == 0
    rows = [r for r in json.loads(cli("requests", "--limit", 50, "--json").stdout) if r["status"] == 200]
    assert len(rows) == 41 and all(r["target"] == "classifier" and r["model"] == plan["root"]["artefact"] for r in rows)
    assert all(r["prompt_tokens"] == r["completion_tokens"] == 0 for r in rows)


@pytest.mark.full
def test_an_encoder_is_asked_where_it_is_worth_it(cli, serve, smollm2, minilm, test_data, home, tmp_path):
    cli("import", test_data / "intents" / "banking77.jsonl", tmp_path / "bank", "--limit", 2000)
    # The goal is import's own: its floor of 0.5 n-grams reach, for less; but further below the encoder than may be lost.
    done = cli("optimize", tmp_path / "bank", "--model", smollm2, "--model", minilm, "--budget-minutes", 0.5, "--max-items", 300, "--promote", "--json")
    result = json.loads(done.stdout)
    evidence, plan = result["evidence"], result["plan"]
    assert result["verdict"] == "found", evidence["verification"]
    first = plan["root"]["inputs"][0] if plan["root"]["op"] == "cascade" else plan["root"]  # a model behind it costs little beside
    assert first["op"] == "classifier" and first["engine"] == "encoder", [plan["root"], evidence["classifiers"]]
    assert plan["engines"]["encoder"]["model"] == minilm and len(plan["engines"]["encoder"]["sha256"]) == 64
    words, vectors = evidence["classifiers"]
    assert vectors["accuracy"] > words["accuracy"] + 0.03 and vectors["item_us"] > words["item_us"]
    assert evidence["classifier"] == vectors and vectors["encoder"] == minilm
    tree = cli("explain", result["plan_hash"]).stdout
    assert "the message's vector by" in tree and "nan" not in tree
    again = json.loads(cli("optimize", tmp_path / "bank", "--replay", result["run"], "--json").stdout)
    assert again["plan_hash"] == result["plan_hash"]

    one = serve("--plan", "bank")
    body = {"model": "bank", "messages": [{"role": "user", "content": "someone nicked my purse, please block the plastic"}]}
    status, _, answer = one.request("/v1/chat/completions", body)
    answer = json.loads(answer)
    assert status == 200 and answer["choices"][0]["message"]["content"] in plan["labels"], answer
    assert answer["usage"]["prompt_tokens"] > 5
    assert one.metric("penstock_engines") == len(plan["engines"])
    assert one.stop() == 0
    row = json.loads(cli("requests", "--limit", 1, "--json").stdout)[0]
    assert row["status"] == 200 and row["prompt_tokens"] == answer["usage"]["prompt_tokens"]
