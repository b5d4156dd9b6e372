"""Results that have no place to go: told before the work, and what stands there already stays."""
import json
import os
import subprocess

import pytest


@pytest.mark.parametrize("command", [
    ("eval", "nowhere", "--report"), ("optimize", "nowhere", "--output"), ("optimize", "nowhere", "--report"), ("tune", "nowhere", "--output"),
    ("turn", "nowhere", "--report"), ("prune", "nowhere", "none"), ("calibrate", "nowhere", "none"), ("merge", "nowhere", "none"),
])
@pytest.mark.parametrize("where", ["missing/result", "home"])
def test_a_place_is_tried_before_the_work(place, command, where):
    """Before even the workload and the model are opened, which are not there either."""
    path = os.path.join(place.path, where)
    if command[-1] == "none" and where == "home":
        assert "nowhere" not in place.refused(*command, path, "--force", says=path)
    else:
        assert "nowhere" not in place.refused(*command, path, says=path)


def test_an_export_of_nothing_leaves_the_last_one(place):
    rows = place.write("rows.jsonl", b"".join(json.dumps({"text": f"question {i}", "answer": "yes"}).encode() + b"\n" for i in range(3)))
    kept = os.path.join(place.path, "kept.jsonl")
    assert place.run("data", "import", "desk", rows).returncode == 0
    assert place.run("data", "export", "desk", "-o", kept).returncode == 0
    with open(kept, "rb") as f:
        whole = f.read()
    assert whole.count(b"\n") == 3
    place.refused("data", "export", "dsek", "-o", kept, says="no answered record", status=3)
    with open(kept, "rb") as f:
        assert f.read() == whole


def test_what_killed_writers_left_goes_with_the_next(place):
    """Beside the output, where nobody else would look for it."""
    place.write("out.gguf.0123456789abcdef.tmp", b"half")
    assert place.run("quantize", "none", "out.gguf", "Q4_0").returncode == 2
    assert not [f for f in place.listing() if f.endswith(".tmp")]


def test_a_full_standard_output_is_an_error(place):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([place.penstock, "models", "--catalogue"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and b"stdout" in done.stderr


@pytest.mark.parametrize("options, says", [
    (("--from", "other", "--rank", "8"), "rank"), (("--from", "other", "--codes", "8"), "codes"), (("--distill-share", "0.3"), "distill"),
])
def test_options_that_would_do_nothing_are_refused(place, options, says):
    assert "nowhere" not in place.refused("tune", "nowhere", *options, says=says)
