"""LoRA adapters from file to answer: named, listed, chosen by a client's `model`, by a plan and on the command line, merged, and refused where they do not fit."""
import concurrent.futures
import json
import pathlib
import sys

import openai
import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "faults"))
import gguf_file  # noqa: E402

RANK = 2
HELLO = [{"role": "user", "content": "Where is my parcel?"}]


def adapter_bytes(targets, architecture="llama", rank=RANK, seed=0, **changes):
    """A GGUF adapter for tensors {name: (n_in, n_out)}; its numbers are the file's order and seed away from another's."""
    metadata = {"general.type": "adapter", "general.architecture": architecture, "adapter.type": "lora", "adapter.lora.alpha": 60.0, **changes}
    shapes = {f"pad.{i}": (8,) for i in range(seed)}
    for name, (n_in, n_out) in targets.items():
        shapes |= {name + ".lora_a": (n_in, rank), name + ".lora_b": (rank, n_out)}
    return gguf_file.build(metadata, shapes)[1]


def all_linear():
    return {name: shape for name, shape in gguf_file.tensors().items() if name.startswith("blk.") and len(shape) == 2}


@pytest.fixture
def files(tmp_path):
    """The tiny model, two adapters for it, and one that is another model's."""
    linear = all_linear()
    some = {name: shape for name, shape in linear.items() if "attn_" in name}
    (tmp_path / "tiny.gguf").write_bytes(gguf_file.build()[1])
    (tmp_path / "first.gguf").write_bytes(adapter_bytes(linear))
    (tmp_path / "second.gguf").write_bytes(adapter_bytes(dict(reversed(some.items())), rank=3))
    (tmp_path / "other.gguf").write_bytes(adapter_bytes(linear, architecture="qwen2"))
    return tmp_path


def ask(client, model, **more):
    answer = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=24, **more)
    return answer.choices[0].message.content


@pytest.fixture
def served(serve, files):
    one = serve("--model", files / "tiny.gguf", "--adapter", f"orders={files / 'first.gguf'}", "--adapter", files / "second.gguf")
    one.client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0, timeout=60)
    return one


def test_a_client_chooses(served):
    names = {m.id for m in served.client.models.list()}
    assert {"tiny", "tiny:orders", "tiny:second"} <= names
    alone = {name: ask(served.client, name) for name in ("tiny", "tiny:orders", "tiny:second")}
    assert len(set(alone.values())) == 3
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        mixed = list(pool.map(lambda name: (name, ask(served.client, name)), 3 * list(alone)))
    assert all(text == alone[name] for name, text in mixed)
    stream = served.client.chat.completions.create(model="tiny:orders", messages=HELLO, temperature=0, max_tokens=24, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == alone["tiny:orders"]
    text = served.client.completions.create(model="tiny:second", prompt="Where", temperature=0, max_tokens=8)
    assert text.model == "tiny:second"


@pytest.mark.parametrize("name, word", [("tiny:none", "adapter"), ("nobody:orders", "does not exist"), ("tiny:", "does not exist")])
def test_what_is_not_there(served, name, word):
    with pytest.raises(openai.NotFoundError) as e:
        ask(served.client, name)
    assert word in str(e.value)


def test_names(cli, files):
    add = ["adapters", "add", "orders", files / "first.gguf", "--model", files / "tiny.gguf", "--workload", "desk", "--data", "ab" * 32, "--run", "run-7"]
    assert "orders" in cli(*add).stdout
    told = json.loads(cli(*add, "--json").stdout)  # the same again
    row, = json.loads(cli("adapters", "--json").stdout)
    assert {**told, "created_ms": 0} == {**row, "created_ms": 0}
    assert (row["name"], row["workload"], row["data"], row["run"], row["rank"]) == ("orders", "desk", "ab" * 32, "run-7", RANK)
    assert len(row["file"]) == 64 and len(row["base_sha256"]) == 64
    assert "run-7" in cli("models").stdout
    clash = cli("adapters", "add", "orders", files / "second.gguf", "--model", files / "tiny.gguf", ok=False)
    assert clash.returncode and "is there already" in clash.stderr
    (files / "grown.gguf").write_bytes(gguf_file.build(gguf_file.keys(general__name="grown"))[1])
    cli("adapters", "export", "orders", files / "kept.gguf", "--model", files / "tiny.gguf")
    moved = cli("adapters", "add", "moved", files / "kept.gguf", "--model", files / "grown.gguf", ok=False)
    assert moved.returncode and "made for the model file" in moved.stderr
    cli("adapters", "remove", "orders")
    assert json.loads(cli("adapters", "list", "--json").stdout) == []


def test_run_and_merge(cli, files):
    def run(model, *more):
        return cli("run", model, "Where is it?", "-n", "24", *more).stdout

    tiny = files / "tiny.gguf"
    cli("adapters", "add", "orders", files / "first.gguf", "--model", tiny)
    base, by_path, by_name = run(tiny), run(tiny, "--adapter", files / "first.gguf"), run(tiny, "--adapter", "orders")
    assert by_path == by_name != base
    cli("merge", tiny, files / "first.gguf", files / "merged.gguf")
    assert run(files / "merged.gguf") == by_path
    cli("adapters", "export", "orders", files / "peft", "--peft", "--model", tiny)
    assert run(tiny, "--adapter", files / "peft") == by_path
    assert "there already" in cli("merge", tiny, files / "first.gguf", files / "merged.gguf", ok=False).stderr
    cli("merge", tiny, files / "first.gguf", files / "merged.gguf", "--force", "--type", "Q8_0")
    told = json.loads(cli("merge", tiny, "orders", files / "merged.gguf", "--force", "--json").stdout)
    assert told == {"path": str(files / "merged.gguf"), "model": str(tiny), "adapter": "orders", "n_fallback": 0}
    for n, peft in enumerate(([], ["--peft"])):
        told = json.loads(cli("adapters", "export", "orders", files / f"told{n}", "--model", tiny, "--json", *peft).stdout)
        assert told == {"path": str(files / f"told{n}"), "adapter": "orders", "peft": bool(peft), "n_matrices": 7, "codes": False}


def test_bad_adapters(cli, files):
    tiny = files / "tiny.gguf"
    linear = all_linear()
    wrong = dict(linear, **{"blk.0.attn_q.weight": (64, 32)})
    cases = {
        "qwen2": (files / "other.gguf").read_bytes(),
        "another model's": adapter_bytes(wrong),
        "blk.7.attn_q": adapter_bytes({**linear, "blk.7.attn_q.weight": (64, 64)}),
        "no adapter": tiny.read_bytes(),
        "control_vector": adapter_bytes(linear, **{"adapter.type": "control_vector"}),
        "": (files / "first.gguf").read_bytes()[:-40],
    }
    for word, data in cases.items():
        (files / "bad.gguf").write_bytes(data)
        for command in (["run", tiny, "x", "--adapter", files / "bad.gguf"], ["merge", tiny, files / "bad.gguf", files / "out.gguf"],
                        ["adapters", "add", "bad", files / "bad.gguf", "--model", tiny]):
            done = cli(*command, ok=False)
            assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") <= 2, (word, command, done.stderr)
        assert not (files / "out.gguf").exists()


def test_a_plan_chooses(cli, serve, files, home):
    tiny = files / "tiny.gguf"
    cli("adapters", "add", "orders", files / "first.gguf", "--model", tiny)
    file = json.loads(cli("adapters", "--json").stdout)[0]["file"]

    def plan(name, **more):
        path = files / f"{name}.json"
        path.write_text(json.dumps({"schema": 1, "workload": name, "engines": {"e": {"model": str(tiny)}},
                                    "root": {"op": "local", "engine": "e", "max_tokens": 24, "prompt": {"name": "p", "instruction": "Sort."}, **more}}))
        return path

    one = serve("--plan", plan("with", adapter=file), "--plan", plan("without"))
    client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0, timeout=60)
    answers = [client.chat.completions.create(model=m, messages=HELLO).choices[0].message.content for m in ("with", "without", "with")]
    assert answers[0] == answers[2] != answers[1]
    lost = cli("serve", "--port", "0", "--plan", plan("lost", adapter="0" * 64), ok=False)
    assert lost.returncode and "adapter" in lost.stderr
    assert "adapter" in cli("serve", "--port", "0", "--plan", plan("wrong", adapter="orders"), ok=False).stderr


@pytest.fixture
def coded(files):
    """The first adapter, its numbers as they are, answering in codes: bytes that stand for words."""
    vocabulary = gguf_file.keys()["tokenizer.ggml.tokens"]
    kept = {ord(c) for c in "<>ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    table = {bytes([b]): f"<{chr(65 + b // 26)}{chr(65 + b % 26)}>".encode() for b in range(256) if b not in kept}
    rows = [[byte[0], *piece] for byte, piece in table.items()]
    assert len(vocabulary[:256]) == 256  # the byte is the token
    (files / "coded.gguf").write_bytes(adapter_bytes(all_linear(), **{"penstock.codes": json.dumps(rows)}))
    return table


def test_an_adapter_that_answers_in_codes(serve, files, coded):
    one = serve("--model", files / "tiny.gguf", "--adapter", files / "first.gguf", "--adapter", files / "coded.gguf")
    client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0, timeout=60)
    asked = dict(messages=HELLO, temperature=0, max_tokens=24, logprobs=True, top_logprobs=2)
    plain, answer = (client.chat.completions.create(model=f"tiny:{name}", **asked) for name in ("first", "coded"))
    said, told = plain.choices[0].logprobs.content, answer.choices[0].logprobs.content
    text = answer.choices[0].message.content

    def expanded(token):
        return coded.get(bytes(token.bytes), bytes(token.bytes))

    assert any(bytes(t.bytes) in coded for t in said)
    assert [bytes(t.bytes) for t in told] == [expanded(t) for t in said]
    assert [t.logprob for t in told] == [t.logprob for t in said]
    assert [[bytes(o.bytes) for o in t.top_logprobs] for t in told] == [[expanded(o) for o in t.top_logprobs] for t in said]
    assert text.encode() == b"".join(bytes(t.bytes) for t in told)
    assert answer.usage.completion_tokens == plain.usage.completion_tokens == len(said)
    stream = client.chat.completions.create(model="tiny:coded", messages=HELLO, temperature=0, max_tokens=24, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == text
    word = next(t.token for t in told if t.token.startswith("<"))
    assert ask(client, "tiny:coded", stop=[word[1:]]) == text[: text.index(word[1:])]


def test_codes_go_with_the_file(cli, files, coded):
    def run(adapter, *more):
        return cli("run", files / "tiny.gguf", "Where is it?", "-n", "24", "--adapter", adapter, *more).stdout

    cli("adapters", "add", "coded", files / "coded.gguf", "--model", files / "tiny.gguf")
    answer = run("coded")
    assert any(word.decode() in answer for word in coded.values()) and answer != run(files / "first.gguf")
    exported = cli("adapters", "export", "coded", files / "kept.gguf", "--model", files / "tiny.gguf").stdout
    assert "penstock.codes" in exported and run(files / "kept.gguf") == answer
    assert "penstock.codes" in cli("inspect", files / "kept.gguf", "--json").stdout
    assert "penstock.codes" in cli("adapters", "export", "coded", files / "peft", "--peft", "--model", files / "tiny.gguf").stdout
    assert run(files / "peft") == answer
    assert run("coded", "--choice", "<AB>HER<DE>").strip() == "<AB>HER<DE>"
    merged = cli("merge", files / "tiny.gguf", files / "coded.gguf", files / "merged.gguf", ok=False)
    assert merged.returncode and "answers in codes" in merged.stderr
    (files / "bad.gguf").write_bytes(adapter_bytes(all_linear(), **{"penstock.codes": "[[1,2]]"}))
    bad = cli("adapters", "add", "bad", files / "bad.gguf", "--model", files / "tiny.gguf", ok=False)
    assert bad.returncode == 2 and "codes" in bad.stderr
