"""/v1/files and /v1/fine_tuning/jobs through the unmodified openai client."""
import io
import json

import openai
import pytest


def examples(n, bad=None):
    rows = [json.dumps({"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"It is {i}."}]}) for i in range(n)]
    if bad is not None:
        rows[n // 2] = bad
    return "\n".join(rows).encode() + b"\n"


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
