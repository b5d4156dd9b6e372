"""/v1/embeddings through the unmodified openai client and LangChain, the books behind it, and `penstock embed`."""
import base64
import concurrent.futures
import json
import math
import os
import struct
import subprocess

import openai
import pytest

TEXTS = ["How do I reset my password?", "I forgot my login and cannot sign in.", "The mountain lake froze over in January."]


@pytest.fixture
def client(encoder):
    return openai.OpenAI(base_url=encoder.url + "/v1", api_key="none", max_retries=0, timeout=300)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def test_texts(client, encoder):
    answer = client.embeddings.create(model=encoder.model, input=TEXTS, user="someone")
    assert answer.object == "list" and answer.model == encoder.model
    assert [d.index for d in answer.data] == [0, 1, 2] and all(d.object == "embedding" for d in answer.data)
    vectors = [d.embedding for d in answer.data]
    assert all(len(v) == 384 and abs(dot(v, v) - 1) < 1e-5 for v in vectors)
    assert dot(vectors[0], vectors[1]) > 0.4 > 0.2 > dot(vectors[0], vectors[2])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 20
    assert answer._request_id.startswith("embd-")


def test_formats_and_batches_agree(client, encoder):
    together = [d.embedding for d in client.embeddings.create(model=encoder.model, input=TEXTS).data]  # the client asks for base64
    numbers = [d.embedding for d in client.embeddings.create(model=encoder.model, input=TEXTS, encoding_format="float").data]
    alone = [client.embeddings.create(model="default", input=t).data[0].embedding for t in TEXTS]
    as_float32 = [[struct.unpack("f", struct.pack("f", x))[0] for x in v] for v in numbers]
    assert together == as_float32 == alone
    raw = encoder.request("/v1/embeddings", {"model": encoder.model, "input": TEXTS[0], "encoding_format": "base64"})
    assert raw[0] == 200
    assert list(struct.unpack("<384f", base64.b64decode(json.loads(raw[2])["data"][0]["embedding"]))) == alone[0]


def test_tokens(client, encoder):
    ids = [101, 7592, 2088, 102]  # [CLS] hello world [SEP]
    text = client.embeddings.create(model=encoder.model, input="hello world")
    assert text.usage.prompt_tokens == 4
    assert client.embeddings.create(model=encoder.model, input=ids).data[0].embedding == text.data[0].embedding
    lists = client.embeddings.create(model=encoder.model, input=[ids, [101, 102]])
    assert lists.data[0].embedding == text.data[0].embedding and len(lists.data) == 2 and lists.usage.prompt_tokens == 6


@pytest.mark.parametrize("wrong, param, code", [
    ({"input": ""}, "input", None),
    ({"input": []}, "input", None),
    ({"input": [1000000]}, "input", None),
    ({"input": "word " * 600}, "input", "context_length_exceeded"),
    ({"input": "x", "dimensions": 128}, "dimensions", None),
    ({"input": "x", "dimensions": 385}, "dimensions", None),
])
def test_refusals(client, encoder, wrong, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=encoder.model, **wrong)
    assert caught.value.param == param and caught.value.code == code


def test_whole_dimensions_are_accepted(client, encoder):
    assert len(client.embeddings.create(model=encoder.model, input="x", dimensions=384).data[0].embedding) == 384


def test_models_of_the_wrong_kind(client, encoder):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="no-such-model", input="x")
    with pytest.raises(openai.BadRequestError, match="encoder"):
        client.chat.completions.create(model=encoder.model, messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="encoder"):
        client.completions.create(model=encoder.model, prompt="hi")
    if not encoder.generator:
        pytest.skip("no generator: PENSTOCK_TEST_SMOLLM2 is not set")
    with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
        client.embeddings.create(model=encoder.generator, input="x")
    chat = client.chat.completions.create(model=encoder.generator, messages=[{"role": "user", "content": "hi"}], max_tokens=4)
    assert chat.choices[0].message.content
    assert {encoder.model, encoder.generator} <= {m.id for m in client.models.list()}


def test_many_at_once(client, encoder):
    """Callers of all sizes at the same time get what each would get alone; every one is counted."""
    before = encoder.metric("penstock_engine_requests_total")
    want = client.embeddings.create(model=encoder.model, input=TEXTS).data
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        sizes = [1 + 37 * i % 90 for i in range(40)]
        answers = list(pool.map(lambda n: client.embeddings.create(model=encoder.model, input=[TEXTS[k % 3] for k in range(n)]), sizes))
    for n, answer in zip(sizes, answers):
        assert [d.embedding for d in answer.data] == [want[k % 3].embedding for k in range(n)]
    assert encoder.metric("penstock_engine_requests_total") == before + 41


def test_langchain(encoder):
    langchain_openai = pytest.importorskip("langchain_openai")
    embeddings = langchain_openai.OpenAIEmbeddings(base_url=encoder.url + "/v1", api_key="none", model=encoder.model, check_embedding_ctx_length=False)
    vectors = embeddings.embed_documents(TEXTS)
    assert len(vectors) == 3 and math.isclose(dot(vectors[0], vectors[0]), 1, abs_tol=1e-5)


def test_books(serve, cli, minilm, home):
    """A key's budget pays; the record has the tokens and the cost; a spent budget refuses."""
    key = cli("key", "create", "shop").stdout.strip()
    poor = cli("key", "create", "poor", "--day", "0.000000001").stdout.strip()
    cli("settings", "machine", "100")
    one = serve("--model", minilm, "--require-key")
    model = os.path.splitext(os.path.basename(minilm))[0]
    client = openai.OpenAI(base_url=one.url + "/v1", api_key=key, max_retries=0, timeout=300)
    answer = client.embeddings.create(model=model, input=TEXTS)
    with pytest.raises(openai.RateLimitError) as caught:
        client.with_options(api_key=poor).embeddings.create(model=model, input=TEXTS)
    assert caught.value.code == "insufficient_quota"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="pst-wrong").embeddings.create(model=model, input=TEXTS)
    assert one.stop() == 0
    rows = {r["completion_id"]: r for r in json.loads(cli("requests", "--json").stdout)}
    row = rows[answer._request_id]
    assert row["prompt_tokens"] == answer.usage.prompt_tokens and row["completion_tokens"] == 0 and row["status"] == 200
    assert float(row["cost_usd"]) > 0


def test_embed_command(penstock, minilm, tmp_path):
    def run(*arguments, stdin=None, ok=True):
        done = subprocess.run([penstock, "embed", *arguments], input=stdin, capture_output=True, text=True, timeout=300, env={**os.environ, "PENSTOCK_HOME": str(tmp_path)})
        assert (done.returncode == 0) == ok, done.stderr
        return done

    words = json.loads(run(minilm, *TEXTS, "--json").stdout)
    lines = json.loads(run(minilm, "--json", stdin="\n".join(TEXTS) + "\n").stdout)
    assert words["dimensions"] == 384 and words["embeddings"] == lines["embeddings"] and len(lines["embeddings"]) == 3
    table = run(minilm, *TEXTS).stdout
    assert "cosine" in table and "1.000" in table
    assert "cannot be cut" in run(minilm, "x", "--dims", "100", ok=False).stderr
    assert "no text" in run(minilm, stdin="\n", ok=False).stderr
