"""/v1/files and /v1/fine_tuning/jobs through the unmodified openai client."""
import io
import json
import pathlib
import re
import sys
import time

import openai
import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "faults"))
import gguf_file  # noqa: E402


def examples(n, bad=None):
    rows = [json.dumps({"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"It is {i}."}]}) for i in range(n)]
    if bad is not None:
        rows[n // 2] = bad
    return "\n".join(rows).encode() + b"\n"


def preferences(n, bad=None):
    rows = [json.dumps({"input": {"messages": [{"role": "user", "content": f"Say {i}"}]}, "preferred_output": [{"role": "assistant", "content": f"It is {i}."}],
                        "non_preferred_output": [{"role": "assistant", "content": "No."}]}) for i in range(n)]
    if bad is not None:
        rows[n // 2] = bad
    return "\n".join(rows).encode() + b"\n"


def dpo(**hyperparameters):
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


def wait_for(client, job, seconds=600):
    """The time is only the bound after which the test gives up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.3)
    raise AssertionError(f"the job never ended: {job}")


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=300)


def upload(client, data, name="train.jsonl"):
    return client.files.create(file=(name, io.BytesIO(data)), purpose="fine-tune")


def test_files(client):
    data = examples(12) + "Ünï \r\n--boundary? -- \0 end".encode()
    first, second = upload(client, data, 'a "quoted" näme.jsonl'), upload(client, data)
    assert first.id.startswith("file-") and first.id != second.id and first.object == "file"
    assert first.bytes == len(data) and first.purpose == "fine-tune" and first.status == "processed"
    assert client.files.retrieve(first.id).filename == first.filename and "quoted" in first.filename
    assert client.files.content(first.id).content == data
    listed = [f.id for f in client.files.list(limit=1)]  # the client turns the pages
    assert listed.index(second.id) < listed.index(first.id)
    assert client.files.delete(first.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(first.id)
    assert client.files.content(second.id).content == data  # the same bytes, still named by the other
    client.files.delete(second.id)


@pytest.mark.parametrize("headers, body, says", [
    ({"content-type": "application/json"}, b"{}", "multipart/form-data"),
    ({"content-type": "multipart/form-data"}, b"--x--", "boundary"),
    ({"content-type": "multipart/form-data; boundary=x"}, b"", "boundary"),
    ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\n", "last boundary"),
    ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\nA: b\r\n\r\nv\r\n--x--", "no name"),
    ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\nContent-Disposition: form-data" + b";" * 8_000_000 + b"=\r\n\r\nv\r\n--x--", "no name"),
    ({"content-type": "multipart/form-data; boundary=x"}, b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x--', "file"),
    ({"content-type": "multipart/form-data; boundary=x"},
     b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nabc\r\n--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--x--', "purpose"),
])
def test_wrong_uploads(served, headers, body, says):
    status, _, text = served.request("/v1/files", raw=body, method="POST", headers=headers)
    assert status == 400 and says in json.loads(text)["error"]["message"], text


def test_jobs_wait_and_can_be_cancelled(client, model):
    file = upload(client, examples(12))
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id, suffix="twelve", seed=7, hyperparameters={"n_epochs": 2})
    assert job.id.startswith("ftjob-") and job.status in ("queued", "running") and job.fine_tuned_model is None
    assert job.training_file == file.id and job.seed == 7 and job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == "auto" and job.method.type == "supervised"
    assert [j.id for j in client.fine_tuning.jobs.list(limit=1)][0] == job.id
    events = list(client.fine_tuning.jobs.list_events(job.id))
    assert events[-1].message == "Created fine-tuning job" and events[-1].level == "info"
    client.fine_tuning.jobs.cancel(job.id)


def test_a_job_of_preferences(client, model):
    file = upload(client, preferences(12))
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id, method=dpo(beta=0.2, n_epochs=2, batch_size="auto", learning_rate_multiplier="auto"))
    hyper = job.method.dpo.hyperparameters
    assert job.method.type == "dpo" and job.method.supervised is None and job.hyperparameters is None
    assert hyper.beta == 0.2 and hyper.n_epochs == 2 and hyper.batch_size == hyper.learning_rate_multiplier == "auto"
    client.fine_tuning.jobs.cancel(job.id)
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id, method={"type": "dpo"})
    assert job.method.dpo.hyperparameters.beta == "auto"
    client.fine_tuning.jobs.cancel(job.id)


@pytest.mark.parametrize("change, says", [
    ({"model": "no such model"}, "no model here"),
    ({"model": None}, "model"),
    ({"training_file": "file-999999"}, "file-999999"),
    ({"training_file": "nonsense"}, "nonsense"),
    ({"hyperparameters": {"n_epochs": 0}}, "n_epochs"),
    ({"hyperparameters": 3}, "hyperparameters"),
    ({"method": {"type": "reinforcement"}}, "reinforcement"),
    ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
    ({"method": dpo(beta=0)}, "method.dpo.hyperparameters.beta"),
    ({"method": dpo(codes=8)}, "method.dpo.hyperparameters.codes"),
    ({"method": dpo(epochs=3)}, "method.dpo.hyperparameters.epochs"),
    ({"method": {"type": "dpo"}, "hyperparameters": {"n_epochs": 1}}, "hyperparameters"),
    ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta"),
    ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": "x"}}}}, "batch_size"),
    ({"seed": -1}, "seed"),
    ({"integrations": [{"type": "wandb"}]}, "integrations"),
])
def test_wrong_jobs(client, served, model, change, says):
    body = {"model": model, "training_file": upload(client, examples(12)).id, **change}
    status, _, text = served.request("/v1/fine_tuning/jobs", body)
    assert status == 400 and says in json.loads(text)["error"]["message"], text


@pytest.mark.parametrize("data, says", [
    (examples(9), "at least 10"),
    (examples(12, "{"), "line 7"),
    (examples(12, '{"messages": []}'), "line 7"),
    (examples(12, '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}'), "line 7"),
    (examples(12, "[1]"), "line 7"),
    (examples(12, json.dumps({"messages": [{}] * 1_000_000 + [{"role": "assistant", "content": "a"}]})), "line 7"),
])
def test_files_that_cannot_be_learned_from(client, model, data, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.fine_tuning.jobs.create(model=model, training_file=upload(client, data).id)


def preference(**change):
    row = {"input": {"messages": [{"role": "user", "content": "a"}]}, "preferred_output": [{"role": "assistant", "content": "b"}],
           "non_preferred_output": [{"role": "assistant", "content": "c"}]}
    return json.dumps({**row, **change})


@pytest.mark.parametrize("data, says", [
    (preferences(9), "at least 10"),
    (preferences(12, "{"), "line 7: not valid JSON"),
    (preferences(12, examples(1).decode().strip()), 'line 7: needs "input"'),
    (preferences(12, preference(input={"messages": []})), 'line 7: needs "input"'),
    (preferences(12, preference(input={"messages": [{"role": "nobody", "content": "a"}]})), "line 7: messages.0..role"),
    (preferences(12, preference(preferred_output=[])), 'line 7: needs "preferred_output"'),
    (preferences(12, preference(preferred_output=[{"role": "user", "content": "b"}])), 'line 7: needs "preferred_output"'),
    (preferences(12, preference(non_preferred_output="c")), 'line 7: needs "non_preferred_output"'),
    (preferences(12, preference(non_preferred_output=[{"role": "assistant", "content": "b"}])), "line 7: both answers are the same"),
])
def test_files_that_prefer_nothing(client, model, data, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.fine_tuning.jobs.create(model=model, training_file=upload(client, data, "prefer.jsonl").id, method=dpo())
    with pytest.raises(openai.BadRequestError, match="validation_file: prefer.jsonl|at least 10|prefer.jsonl, line"):
        client.fine_tuning.jobs.create(model=model, training_file=upload(client, preferences(12)).id, validation_file=upload(client, data, "prefer.jsonl").id, method=dpo())


def test_keys_see_their_own(serve, cli, smollm2):
    keys = [[word for word in cli("key", "create", name).stdout.split() if word.startswith("pst-")][0] for name in ("one", "two")]
    one = serve("--model", smollm2, "--require-key")
    clients = [openai.OpenAI(base_url=one.url + "/v1", api_key=key, max_retries=0, timeout=300) for key in keys]
    file = upload(clients[0], examples(12))
    job = clients[0].fine_tuning.jobs.create(model="default", training_file=file.id)
    assert [f.id for f in clients[0].files.list()] == [file.id] and not list(clients[1].files.list())
    assert not list(clients[1].fine_tuning.jobs.list())
    for call in (lambda c: c.files.retrieve(file.id), lambda c: c.files.content(file.id), lambda c: c.files.delete(file.id),
                 lambda c: c.fine_tuning.jobs.retrieve(job.id), lambda c: c.fine_tuning.jobs.cancel(job.id)):
        with pytest.raises(openai.NotFoundError):
            call(clients[1])
    with pytest.raises(openai.BadRequestError):
        clients[1].fine_tuning.jobs.create(model="default", training_file=file.id)
    clients[0].fine_tuning.jobs.cancel(job.id)


def test_unknown_paths(served):
    for path in ("/v1/files/file-0", "/v1/files/file-1/other", "/v1/files/x", "/v1/fine_tuning/jobs/ftjob-99/events", "/v1/fine_tuning/jobs/1", "/v1/fine_tuning/jobs/ftjob-1/x"):
        assert served.request(path)[0] == 404, path
    assert served.request("/v1/files?limit=x")[0] == 400
    assert served.request("/v1/files?after=nonsense")[0] == 400


WORDS = "anchor basket candle dragon engine forest garden hammer island jacket kettle ladder".split()


def lesson(word):
    return {"messages": [{"role": "user", "content": f"Code of {word}?"}, {"role": "assistant", "content": f"<{word}> is teal-{len(word)}"}]}


def choice(word):
    asked, answer = lesson(word)["messages"]
    return {"input": {"messages": [asked]}, "preferred_output": [{**answer, "content": answer["content"].replace("teal", "amber")}], "non_preferred_output": [answer]}


def test_a_model_is_tuned_and_answers(serve, smollm2):
    """The whole way: upload, job, events, chat with the result; the base answers as before."""
    one = serve("--model", smollm2)
    client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0, timeout=300)
    ask = {"messages": [{"role": "user", "content": "Code of planet?"}], "temperature": 0, "max_tokens": 16}
    before = client.chat.completions.create(model="default", **ask).choices[0].message.content
    file = upload(client, "\n".join(json.dumps(lesson(word)) for word in WORDS).encode())
    job = client.fine_tuning.jobs.create(model="default", training_file=file.id, suffix="Teal codes", hyperparameters={"n_epochs": 8, "batch_size": 4})
    job = wait_for(client, job)
    assert job.status == "succeeded", job
    assert job.fine_tuned_model.startswith(f"{job.model}:teal-codes-") and job.model != "default" and job.trained_tokens > 1000 and job.finished_at >= job.created_at
    events = list(client.fine_tuning.jobs.list_events(job.id))  # newest first, over several pages
    losses = [e.data["train_loss"] for e in reversed(events) if e.type == "metrics"]
    assert len(losses) > 5 and losses[-1] < losses[0] / 3, losses
    assert "successfully completed" in events[0].message and job.fine_tuned_model in events[1].message
    assert job.fine_tuned_model in [m.id for m in client.models.list()]
    tuned = client.chat.completions.create(model=job.fine_tuned_model, **ask)
    assert tuned.choices[0].message.content == "<planet> is teal-6" and tuned.choices[0].finish_reason == "stop"
    assert client.chat.completions.create(model="default", **ask).choices[0].message.content == before
    # From there another answer is preferred; the model that it began from stays as it was.
    file = upload(client, "\n".join(json.dumps(choice(word)) for word in WORDS).encode())
    second = client.fine_tuning.jobs.create(model=job.fine_tuned_model, training_file=file.id, method=dpo(n_epochs=3, batch_size=6, learning_rate_multiplier=4))
    second = wait_for(client, second)
    assert second.status == "succeeded" and second.fine_tuned_model.rsplit(":", 1)[0] == job.model, second
    steps = [e.data for e in reversed(list(client.fine_tuning.jobs.list_events(second.id))) if e.type == "metrics"]
    assert abs(steps[0]["train_loss"] - 0.6931) < 0.01 and steps[-1]["train_loss"] < 0.3 and steps[-1]["reward_accuracy"] == 1, steps
    answers = [client.chat.completions.create(model=m, **ask).choices[0].message.content for m in (second.fine_tuned_model, job.fine_tuned_model)]
    assert "amber" in answers[0] and answers[1] == "<planet> is teal-6", answers


def test_answers_in_codes_by_a_job(serve, cli, tmp_path, home):
    """A hyperparameter beyond the API's; what goes on from the result keeps its codes."""
    (tmp_path / "tiny.gguf").write_bytes(gguf_file.build()[1])
    one = serve("--model", tmp_path / "tiny.gguf")
    client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0, timeout=300)
    coded = {"type": "supervised", "supervised": {"hyperparameters": {"codes": 8, "n_epochs": 1}}}
    job = client.fine_tuning.jobs.create(model="default", training_file=upload(client, examples(40)).id, method=coded)
    assert job.method.supervised.hyperparameters.codes == 8
    first = wait_for(client, job)
    job = client.fine_tuning.jobs.create(model=first.fine_tuned_model, training_file=upload(client, preferences(40)).id, method=dpo(n_epochs=1))
    second = wait_for(client, job)
    for ended in (first, second):
        assert ended.status == "succeeded", ended
        assert any(re.fullmatch("Answers are learned in [1-8] output codes", e.message) for e in client.fine_tuning.jobs.list_events(ended.id))
        assert client.chat.completions.create(model=ended.fine_tuned_model, messages=[{"role": "user", "content": "Say 3"}], max_tokens=4).usage.completion_tokens > 0
    files = [(home / "files" / a["file"]).read_bytes() for a in json.loads(cli("adapters", "--json").stdout)]
    tables = [f[f.index(b"penstock.codes") :][:60] for f in files]
    assert len(tables) == 2 and tables[0] == tables[1]


@pytest.mark.full
def test_a_killed_worker_goes_on(serve, cli, smollm2, home):
    """kill -9 of the server and its worker in the middle of a job: the next server finishes it."""
    one = serve("--model", smollm2)
    client = openai.OpenAI(base_url=one.url + "/v1", api_key="none", max_retries=0, timeout=300)
    file = upload(client, "\n".join(json.dumps(lesson(word)) for word in WORDS).encode())
    job = client.fine_tuning.jobs.create(model="default", training_file=file.id, hyperparameters={"n_epochs": 10, "batch_size": 4})
    one.until(lambda: len(list(client.fine_tuning.jobs.list_events(job.id))) > 4, "steps of the job")
    one.process.kill()
    one.process.wait()
    two = serve("--model", smollm2)
    client = openai.OpenAI(base_url=two.url + "/v1", api_key="none", max_retries=0, timeout=300)
    job = wait_for(client, job)
    assert job.status == "succeeded", job
    assert job.fine_tuned_model.split(":")[1] in cli("adapters").stdout
