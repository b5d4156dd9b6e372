"""The unmodified clients of others against `penstock serve`: openai, LangChain, LiteLLM."""
import concurrent.futures
import math

import openai
import pytest

HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=300)


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=32)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert answer.id.startswith("chatcmpl-") and answer.model == model and answer.object == "chat.completion"
    assert answer._request_id == answer.id
    assert 0 < answer.usage.completion_tokens <= 32 and answer.usage.prompt_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_models(client, model):
    names = {m.id for m in client.models.list()}
    assert {model, "default"} <= names
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_default_is_the_served_model(client, model):
    named, default = (client.chat.completions.create(model=m, messages=HELLO, temperature=0, max_tokens=8) for m in (model, "default"))
    assert named.choices[0].message.content == default.choices[0].message.content


def test_streaming_says_the_same(client, model):
    whole = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=24)
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(c.usage is None for c in chunks[:-1]) and len({c.id for c in chunks}) == 1


def test_stream_without_usage(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, max_tokens=4, stream=True))
    assert all(c.usage is None and c.choices for c in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client, model, stream):
    answer = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=6, logprobs=True, top_logprobs=5, stream=stream)
    if stream:
        chunks = list(answer)
        tokens = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        tokens = answer.choices[0].logprobs.content
        text = answer.choices[0].message.content
    assert bytes(b for t in tokens for b in t.bytes).decode() == text
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 5
        best = token.top_logprobs
        assert [t.logprob for t in best] == sorted((t.logprob for t in best), reverse=True)
        assert token.token == best[0].token and token.logprob == best[0].logprob  # greedy
        assert sum(math.exp(t.logprob) for t in best) <= 1 + 1e-5


def test_stop(client, model):
    free = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=24).choices[0].message.content
    stop = free.split()[3]
    for stream in (False, True):
        answer = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=24, stop=[stop, "@@"], stream=stream)
        if stream:
            chunks = list(answer)
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            finish = chunks[-1].choices[0].finish_reason
        else:
            text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert text == free[: free.index(stop)] and finish == "stop"


def test_parts_of_text_are_text(client, model):
    def ask(content):
        return client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=12)

    whole = ask("What is the capital of France?")
    parts = ask([{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}])
    assert parts.choices[0].message.content == whole.choices[0].message.content
    assert parts.usage.prompt_tokens == whole.usage.prompt_tokens


def test_what_the_template_cannot_write_is_refused(client, model):
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "42"}]
    for messages, param, word in ((picture, "messages[0].content[0].type", "'image_url'"), (history, "messages", "chat template")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=messages, max_tokens=4)
        assert caught.value.param == param and word in caught.value.message


def test_top_p_of_nothing_is_the_likeliest_token(client, model):
    greedy, narrow = (client.chat.completions.create(model=model, messages=HELLO, max_tokens=12, **more) for more in ({"temperature": 0}, {"temperature": 1, "top_p": 0}))
    assert narrow.choices[0].message.content == greedy.choices[0].message.content


def test_length(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=2)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2


def test_n_and_seed(client, model):
    def ask(seed, n=3, stream=False):
        answer = client.chat.completions.create(model=model, messages=HELLO, temperature=1.2, max_tokens=12, n=n, seed=seed, stream=stream)
        if not stream:
            assert [c.index for c in answer.choices] == list(range(n))
            return [c.message.content for c in answer.choices]
        texts = [""] * n
        for chunk in answer:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        return texts

    first = ask(7)
    assert len(set(first)) > 1, "three samples at temperature 1.2 should not be all equal"
    assert ask(7) == first and ask(7, stream=True) == first
    assert ask(7, n=1)[0] == first[0]
    assert ask(8) != first


def test_logit_bias(client, model):
    free = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=1)
    ids = {}  # the first answer's token, banned, does not come again
    for token in range(0, 49152, 4096):
        ids[str(token)] = -100
    banned = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=1, logit_bias=ids)
    assert banned.choices[0].message.content == free.choices[0].message.content
    forced = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=3, logit_bias={"504": 100})
    assert len(set(forced.choices[0].message.content.split())) == 1, forced.choices[0].message.content


def test_completions(client, model):
    answer = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in answer.choices[0].text and answer.object == "text_completion" and answer.id.startswith("cmpl-")
    chunks = list(client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=4, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == answer.choices[0].text


def test_completions_of_several_prompts(client, model):
    prompts = ["One, two, three,", "The capital of Italy is", "Roses are red, violets are"]
    alone = [client.completions.create(model=model, prompt=p, temperature=0, max_tokens=5).choices[0].text for p in prompts]
    together = client.completions.create(model=model, prompt=prompts, temperature=0, max_tokens=5)
    assert [c.text for c in together.choices] == alone and [c.index for c in together.choices] == [0, 1, 2]
    texts = [""] * 3
    for chunk in client.completions.create(model=model, prompt=prompts, temperature=0, max_tokens=5, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == alone


def test_completion_logprobs(client, model):
    answer = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=4, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.text_offset[0] == 0 and len(logprobs.top_logprobs) == 4


def test_concurrent_requests_do_not_touch_each_other(client, model):
    questions = [[{"role": "user", "content": f"Count from {i} to {i + 3}."}] for i in range(12)]

    def ask(messages):
        return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16).choices[0].message.content

    alone = [ask(q) for q in questions]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, questions)) == alone


def test_errors(client, model):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found" and "gpt-9" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=HELLO, temperature=3)
    assert caught.value.param == "temperature" and "0 to 2" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "long " * 20000}])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="long " * 20000)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="x", echo=True)
    assert caught.value.param == "echo"


def test_paths_are_no_models(client, smollm2):
    for name in ("../" + smollm2, "./x.gguf", "/etc/passwd", "x.gguf", "home/penstock.db"):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=name, messages=HELLO, max_tokens=1)


def test_langchain(served, model):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model, base_url=served.url + "/v1", api_key="none", temperature=0, max_tokens=24)
    assert "Paris" in chat.invoke([("human", HELLO[0]["content"])]).content
    assert "Paris" in "".join(c.content for c in chat.stream([("human", HELLO[0]["content"])]))


def test_litellm(served, model):
    import litellm

    answer = litellm.completion(model="openai/" + model, api_base=served.url + "/v1", api_key="none", messages=HELLO, temperature=0, max_tokens=24)
    assert "Paris" in answer.choices[0].message.content
