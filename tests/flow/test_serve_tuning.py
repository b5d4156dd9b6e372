"""/v1/files and /v1/fine_tuning/jobs through the unmodified openai client."""
import io
import json
import time

import openai
import pytest


def examples(n, bad=None):
    rows = [json.dumps({"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"It is {i}."}]}) for i in range(n)]
    if bad is not None:
        rows[n // 2] = bad
    return "\n".join(rows).encode() + b"\n"


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


@pytest.mark.parametrize("change, says", [
    ({"model": "no such model"}, "no model here"),
    ({"model": None}, "model"),
    ({"training_file": "file-999999"}, "file-999999"),
    ({"training_file": "nonsense"}, "nonsense"),
    ({"hyperparameters": {"n_epochs": 0}}, "n_epochs"),
    ({"hyperparameters": 3}, "hyperparameters"),
    ({"method": {"type": "dpo"}}, "dpo"),
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
])
def test_files_that_cannot_be_learned_from(client, model, data, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.fine_tuning.jobs.create(model=model, training_file=upload(client, data).id)


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
