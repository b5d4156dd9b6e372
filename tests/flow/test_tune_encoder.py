"""An encoder that learns a choice task as a person has it learn: by `penstock tune`, as a plan that is asked and served, and as what a search finds by itself."""
import json
import random

import pytest

LABELS = ("card_arrival", "card_linking", "exchange_rate", "card_payment_wrong_exchange_rate", "lost_or_stolen_card", "pin_blocked")


@pytest.fixture
def bank(cli, test_data, tmp_path):
    path = test_data / "intents" / "banking77.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    rows = [row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if row["label"] in LABELS]
    random.Random(1).shuffle(rows)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cli("import", tmp_path / "rows.jsonl", tmp_path / "bank")
    return tmp_path / "bank"


def test_a_tuned_encoder_is_asked(cli, bank, minilm, home, tmp_path):
    done = cli("tune", bank, "--model", minilm, "--steps", 15, "--batch", 16, "--held-out", 0.2, "--json", "-o", tmp_path / "plan.json")
    result = json.loads(done.stdout)
    assert result["labels"] == len(LABELS) and result["steps"] == 15 and result["accuracy"] > 0.9
    assert all(look["asked"] == result["held_out"] for look in result["evaluations"]) and not list((home / "tune").iterdir())
    root = result["plan"]["root"]
    assert root == {"op": "classifier", "artefact": result["classifier"], "engine": "encoder", "adapter": result["file"]}
    measured = json.loads(cli("eval", bank, "--target", tmp_path / "plan.json", "--json").stdout)["targets"][0]
    assert measured["failed"] == 0 and measured["share_accepted"]["estimate"] > 0.9
    refused = cli("eval", bank, "--target", tmp_path / "plan.json", "--part", "examples", ok=False)
    assert refused.returncode == 2 and "trained on the part examples" in refused.stderr


@pytest.mark.full
def test_a_search_finds_a_tuned_encoder(cli, bank, smollm2, minilm):
    result = json.loads(cli("tune", bank, "--model", minilm, "--steps", 40, "--held-out", 0.2, "--json").stdout)
    found = cli("optimize", bank, "--model", smollm2, "--model", minilm, "--budget-minutes", 0.1, "--max-items", 40, "--json", ok=False)
    assert found.returncode in (0, 3), found.stderr
    tuned = [c for c in json.loads(found.stdout)["evidence"]["classifiers"] if c.get("adapter")]
    assert [c["adapter"] for c in tuned] == [result["file"]] and tuned[0]["artefact"] == result["classifier"]


def test_what_an_encoder_is_not_tuned_with(cli, bank, minilm, tmp_path):
    for option, value in (("--objective", "dpo"), ("--codes", 16), ("--prompt", "terse")):
        refused = cli("tune", bank, "--model", minilm, option, value, ok=False)
        assert refused.returncode == 2 and "encoder" in refused.stderr, refused.stderr
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": f"word {i} {i * 3}", "label": "ab"[i % 2]}) + "\n" for i in range(30)), encoding="utf-8")
    cli("import", tmp_path / "few.jsonl", tmp_path / "few")
    refused = cli("tune", tmp_path / "few", "--model", minilm, "--steps", 2, ok=False)
    assert refused.returncode == 3 and "too few" in refused.stderr
