"""Bad files, homes and disks on the command line: each is one clear line with place and remedy, the right exit code, and leaves nothing behind.

Everything runs as the user of the tests, and when that is root, as `nobody` too (conftest.py).
"""
import hashlib
import json
import os
import pathlib
import shutil
import subprocess

import gguf_file
import pytest


def test_the_tiny_model_is_sound(place):
    path = place.write("tiny.gguf", gguf_file.build()[1])
    done = place.run("run", path, "hello", "-n", "4")
    assert done.returncode == 0, done.stderr
    assert place.run("inspect", path, "--verify").returncode == 0


@pytest.mark.parametrize("command", ["inspect", "run"])
def test_damaged_containers(place, command):
    head, whole = gguf_file.build()
    cases = {
        "empty": (b"", "GGUF"),
        "text": (b"# just a text file\n" * 20, "GGUF"),
        "other magic": (b"FUGG" + whole[4:], "GGUF"),
        "version": (whole[:4] + b"\x63\0\0\0" + whole[8:], "99"),
        "byte order": (whole[:4] + b"\0\0\0\x03" + whole[8:], "big-endian"),
        "many tensors": (whole[:8] + b"\xff" * 8 + whole[16:], ""),
        "many values": (whole[:16] + b"\xff" * 8 + whole[24:], ""),
        "oversized tensor": (gguf_file.build(shapes={**gguf_file.tensors(), "x.weight": (64, 1)})[1][:-64], "x.weight"),
    }
    for n in [1, 3, 4, 8, 23, 24, 100, len(head) // 2, len(head) - 40, len(head) + 1, len(whole) // 2, len(whole) - 1]:
        cases[f"first {n}"] = (whole[:n], "")
    for name, (data, says) in cases.items():
        path = place.write("bad.gguf", data)
        place.refused(command, path, says=[path, says])


def test_models_that_cannot_run(place):
    k = gguf_file.keys
    cases = [
        (gguf_file.build(k(general__architecture="perceptron")), ["perceptron", "known are"]),
        (gguf_file.build(k(general__architecture=None)), ["general.architecture"]),
        (gguf_file.build(k(llama__block_count=None)), ["llama.block_count"]),
        (gguf_file.build(k(llama__block_count=2)), ["blk.1."]),
        (gguf_file.build(k(llama__embedding_length=128)), ["token_embd.weight"]),
        (gguf_file.build(k(tokenizer__ggml__model=None, tokenizer__ggml__tokens=None)), ["tokenizer"]),
        (gguf_file.build(k(tokenizer__ggml__model="telepathy")), ["telepathy"]),
        (gguf_file.build(k(tokenizer__ggml__pre="unheard-of")), ["unheard-of"]),
        (gguf_file.build(k(tokenizer__chat_template="{% for m in %}")), ["chat template"]),
        (gguf_file.build(k(tokenizer__chat_template="{{ messages | frobnicate }}")), ["frobnicate"]),
        (gguf_file.build(type_of={"blk.0.ffn_up.weight": 77}), ["77"]),
        (gguf_file.build(shapes={n: s for n, s in gguf_file.tensors().items() if "ffn_gate" not in n}), ["ffn_gate"]),
    ]
    for (_, data), says in cases:
        path = place.write("bad.gguf", data)
        for command in (["run", path, "hello"], ["bench", path], ["chat", path]):
            place.refused(*command, says=[path, *says])


def test_inspect_shows_what_cannot_run(place):
    path = place.write("odd.gguf", gguf_file.build(gguf_file.keys(general__architecture="perceptron"))[1])
    done = place.run("inspect", path)
    assert done.returncode == 0 and b"cannot run" in done.stdout and b"perceptron" in done.stdout


def test_paths(place):
    place.refused("inspect", os.path.join(place.path, "none.gguf"), says="none.gguf")
    place.refused("inspect", place.path + "/", says=place.path)
    place.refused("run", "no-such-model", "hello", says=["no-such-model", "smollm2-135m"])
    place.refused("pull", "no-such-model", says=["no-such-model", "smollm2-135m"])
    place.refused("models", "--remove", "no-such-model", says="no-such-model")
    secret = place.write("secret.gguf", gguf_file.build()[1])
    os.chmod(secret, 0)
    if place.user == "nobody":
        place.refused("run", secret, "hello", says=[secret, "ermission"])


def test_wrong_words(place):
    place.refused("servee", says=["servee", "did you mean 'serve'"])
    place.refused("frobnicate", says=["frobnicate", "--help"])
    place.refused("serve", "extra", says=["extra", "usage: penstock serve [OPTIONS]"])
    place.refused("run", says="usage: penstock run MODEL [TEXT]")
    place.refused("models", "--catalog", says=["--catalog", "did you mean --catalogue"])
    model = place.write("tiny.gguf", gguf_file.build()[1])
    place.refused("bench", model, "-p", "0", "-n", "0", says="nothing to measure")


def test_a_model_of_a_copied_home(place, smollm2):
    """The record knows the file by inode and time: a copy is refused with the command that takes it back."""
    home = place.home
    digest = hashlib.sha256(pathlib.Path(smollm2).read_bytes()).hexdigest()
    if place.user == "nobody":
        pytest.skip("the same for every user")
    os.makedirs(os.path.join(home, "models", "blobs"))
    shutil.copy(smollm2, os.path.join(home, "models", "blobs", digest))
    record = {"name": "smollm2-135m", "licence": "Apache-2.0", "sha256": digest, "bytes": os.path.getsize(smollm2), "inode": "1", "mtime_ns": "1"}
    pathlib.Path(home, "models", "smollm2-135m.json").write_text(json.dumps(record))
    place.refused("inspect", "smollm2-135m", home=home, says="penstock models --verify smollm2-135m")
    done = place.run("models", "--verify", "smollm2-135m", home=home)
    assert done.returncode == 0, done.stderr
    assert place.run("inspect", "smollm2-135m", home=home).returncode == 0


def test_homes(place):
    a_file = place.write("a-file", b"x")
    for command in (["models"], ["pull", "smollm2-135m"], ["run", "smollm2-135m", "hello"]):
        place.refused(*command, home=a_file, says=[a_file, "--home"])
        place.refused(*command, home=a_file + "/below", says=[a_file, "--home"])
    closed = os.path.join(place.path, "closed")
    os.mkdir(closed, 0o700)
    if place.user == "nobody":
        place.refused("models", home=closed, says=[closed])
        place.refused("pull", "smollm2-135m", home=os.path.join(closed, "below"), says=[closed, "--home"])


def test_quantize(place):
    path = place.write("tiny.gguf", gguf_file.build()[1])
    out = os.path.join(place.path, "out.gguf")
    place.refused("quantize", path, out, "Q9_K", says=["Q9_K", "Q4_K"])
    place.refused("quantize", path, path, "Q8_0", says=[path, "--force"])
    place.refused("quantize", path, path, "Q8_0", "--force", says=[path, "another name"])
    place.refused("quantize", path, os.path.join(place.path, "none", "out.gguf"), "Q8_0", says="none")
    place.refused("quantize", path, place.path, "Q8_0", "--force", says=[place.path, "directory"])
    for limit in [0, 1, 100, 5000, 20000]:
        place.refused("quantize", path, out, "Q8_0", limit=limit, says=[out, "too large"])
    assert place.run("quantize", path, out, "Q8_0").returncode == 0
    place.refused("quantize", path, out, "Q8_0", "--force", limit=20000, says=out)  # the old one stays
    assert place.run("run", out, "hello", "-n", "4").returncode == 0
    if place.user == "nobody":
        os.mkdir(os.path.join(place.path, "closed"), 0o755)
        place.refused("quantize", path, os.path.join(place.path, "closed", "out.gguf"), "Q8_0", says=["closed", "ermission"])


def test_damaged_weights_are_found(place):
    head, whole = gguf_file.build()
    data = bytearray(whole)
    data[len(head) + 4 * 1000:len(head) + 4 * 1001] = b"\0\0\xc0\x7f"  # not a number, in the embedding
    path = place.write("nan.gguf", bytes(data))
    assert place.run("inspect", path).returncode == 0
    place.refused("inspect", path, "--verify", says=[path, "token_embd.weight", "row 15"])
    place.refused("quantize", path, os.path.join(place.path, "out.gguf"), "Q8_0", says=[path, "token_embd.weight"])


def test_a_damaged_copy_of_a_pulled_model_is_found(place, smollm2):
    if place.user == "nobody":
        pytest.skip("the same for every user")
    path = os.path.join(place.path, "copy.gguf")
    shutil.copy(smollm2, path)
    assert b"as the catalogue has for smollm2-135m" in place.run("inspect", path, "--verify").stdout
    with open(path, "r+b") as f:
        f.seek(60_000_000)
        byte = f.read(1)
        f.seek(60_000_000)
        f.write(bytes([byte[0] ^ 4]))
    place.refused("inspect", path, "--verify", says=["smollm2-135m", "damaged"])


def test_pull_without_room_or_python(place):
    place.refused("pull", "smollm2-135m", "--no-hub", "--python", os.path.join(place.path, "no-python"), says=["no-python"])
    left = [f for f in place.listing() if "blobs" in f or f.endswith(".json")]
    assert not left, left


def test_output_that_cannot_be_written(place):
    path = place.write("tiny.gguf", gguf_file.build()[1])
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([place.penstock, "inspect", path], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode in (1, 2) and b"stdout" in done.stderr, done.stderr
