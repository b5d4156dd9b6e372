"""The example workload is what its README says: counts, parts, labels, fields that stand in the text, no near-duplicates."""
import collections
import json
import re
import subprocess
import sys

import pytest

PARTS = {"examples": 310, "search": 310, "verify": 310, "sealed": 300}
FIELDS = {"order_number", "email", "product", "amount", "date", "code", "tracking_number"}
URGENCIES = {"low", "normal", "high"}
NEAR_DUPLICATE = 0.6  # no pair of messages above this word Jaccard
SAME_PART = 0.5       # pairs above this are never split between parts

ORDER = re.compile(r"\bKC[- ]?\d{5}\b", re.IGNORECASE)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[a-z]{2,})+")


@pytest.fixture(scope="module")
def folder(root):
    return root / "examples" / "support-desk"


@pytest.fixture(scope="module")
def workload(folder):
    return json.loads((folder / "workload.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def items(folder):
    return read_lines(folder / "items.jsonl")


def read_lines(path):
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n") and "\r" not in text
    return [json.loads(line) for line in text.split("\n")[:-1]]


def content(item):
    return item["messages"][-1]["content"]


def words(item):
    return frozenset(re.findall(r"\w+", content(item).lower()))


def similar_pairs(items, threshold):
    """(i, j, Jaccard) of every pair above the threshold, found by way of the words the two share."""
    sets = [words(i) for i in items]
    seen_with = collections.defaultdict(list)
    for i, own in enumerate(sets):
        shared = collections.Counter(j for w in own for j in seen_with[w])
        for j, n in shared.items():
            jaccard = n / (len(own) + len(sets[j]) - n)
            if jaccard > threshold:
                yield i, j, jaccard
        for w in own:
            seen_with[w].append(i)


def test_shape_of_each_item(items, workload):
    for number, item in enumerate(items, 1):
        assert item["id"] == f"sd-{number:04d}"
        assert set(item) == {"id", "messages", "reference", "part"}
        assert [m["role"] for m in item["messages"]] == ["user"], item["id"]
        assert content(item) == content(item).strip() != "", item["id"]
        assert set(item["reference"]) == {"intent", "urgency", "fields"}, item["id"]
        assert item["reference"]["intent"] in workload["task"]["labels"], item["id"]
        assert item["reference"]["urgency"] in URGENCIES, item["id"]
        assert item["part"] in PARTS, item["id"]


def test_counts_by_part_and_label(items, workload):
    parts = collections.Counter(i["part"] for i in items)
    assert all(parts[part] >= least for part, least in PARTS.items()), parts
    assert len(workload["task"]["labels"]) == len(set(workload["task"]["labels"])) == 14
    for part in PARTS:
        labels = collections.Counter(i["reference"]["intent"] for i in items if i["part"] == part)
        for label in workload["task"]["labels"]:
            assert 0.05 <= labels[label] / parts[part] <= 0.10, (part, label, labels[label])


def test_fields_stand_in_the_message(items):
    for item in items:
        for name, value in item["reference"]["fields"].items():
            assert name in FIELDS, item["id"]
            assert value and value in content(item), (item["id"], name, value)


def test_what_has_a_fixed_form_is_never_left_out(items):
    for item in items:
        fields = item["reference"]["fields"]
        for name, pattern in (("order_number", ORDER), ("email", EMAIL)):
            found = pattern.findall(content(item))
            assert not found or fields.get(name) in found, (item["id"], name, found)


def test_no_near_duplicates(items):
    pairs = [(items[i]["id"], items[j]["id"], round(s, 2)) for i, j, s in similar_pairs(items, NEAR_DUPLICATE)]
    assert pairs == []


def test_alike_messages_are_in_one_part(items):
    split = [(items[i]["id"], items[j]["id"]) for i, j, _ in similar_pairs(items, SAME_PART) if items[i]["part"] != items[j]["part"]]
    assert split == []


def test_workload_document(workload):
    assert set(workload) == {"schema", "name", "description", "task", "prompts", "grader", "goal", "settings", "privacy"}
    assert workload["schema"] == 1 and workload["name"] == "support-desk"
    assert workload["task"]["kind"] == "choice" and workload["task"]["input"] == "last_user_message"
    assert workload["grader"] == {"type": "choice", "field": "intent"}
    assert workload["goal"]["quality_floor"] == 0.60
    names = [p["name"] for p in workload["prompts"]]
    assert len(names) == len(set(names)) >= 3
    for prompt in workload["prompts"]:
        assert set(prompt) == {"name", "system", "instruction"}
        assert all(prompt[k] == prompt[k].strip() for k in prompt), prompt["name"]
    described = next(p for p in workload["prompts"] if p["name"] == "described")
    assert [line.split(":")[0] for line in described["instruction"].split("\n")[1:]] == workload["task"]["labels"]


def test_guide_explains_every_label(folder, workload):
    guide = (folder / "README.md").read_text(encoding="utf-8")
    for label in workload["task"]["labels"]:
        assert f"\n| `{label}` |" in guide, label


def test_trace_names_items_that_may_be_seen(folder, items):
    trace = read_lines(folder / "trace.jsonl")
    part = {i["id"]: i["part"] for i in items}
    assert 500 <= len(trace) <= 700
    assert all(set(row) == {"t_ms", "item"} for row in trace)
    assert {part[row["item"]] for row in trace} == {"examples", "search"}
    times = [row["t_ms"] for row in trace]
    assert times == sorted(times) and times[0] >= 0


def test_trace_is_what_its_script_writes(root, folder):
    made = subprocess.run([sys.executable, root / "tools/make_trace.py", folder], stdout=subprocess.PIPE, check=True, timeout=60)
    assert made.stdout.decode() == (folder / "trace.jsonl").read_text(encoding="utf-8")
