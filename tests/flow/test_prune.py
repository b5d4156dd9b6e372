"""penstock prune: a real model without two layers is written, runs, and is learned again."""
import json

import pytest


@pytest.fixture
def folder(cli, tmp_path):
    rows = [{"text": f"{verb} the {thing} number {i}", "answer": verb} for i, (verb, thing) in enumerate((v, t) for t in "lamp kettle scarf teapot carpet mirror basket candle jacket wallet".split() for v in "return repair track send praise".split())]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    cli("import", path, tmp_path / "verbs")
    return tmp_path / "verbs"


def test_a_shallower_model_is_learned_again(cli, folder, tmp_path, smollm2):
    out = tmp_path / "shallow.gguf"
    few = ["--items", 4, "--search-tokens", 60, "--held-out-items", 4]
    report = json.loads(cli("prune", folder, smollm2, out, "--layers", 2, *few, "--json", "--quiet").stdout)
    assert (report["layers"], report["source_layers"]) == (28, 30) and len(set(report["left_out"])) == 2
    assert 0.8 < report["bytes"] / report["source_bytes"] < 1 and 0 < report["divergence"] < 10
    shown = json.loads(cli("inspect", out, "--json").stdout)
    assert shown["runs"] and sum(t["bytes"] for t in shown["types"]) == report["bytes"]
    tuned = json.loads(cli("tune", folder, "--model", out, "--steps", 2, "--json", "--quiet").stdout)
    assert any(engine["model"] == str(out) for engine in tuned["plan"]["engines"].values())


def test_refusals(cli, folder, tmp_path, smollm2):
    out = tmp_path / "mine.gguf"
    done = cli("prune", folder, smollm2, out, "--layers", 30, "--items", 2, "--held-out-items", 2, "--quiet", ok=False)
    assert done.returncode and "at least one stays" in done.stderr and not out.exists()
    out.write_text("mine")
    done = cli("prune", folder, smollm2, out, "--quiet", ok=False)
    assert done.returncode and "--force" in done.stderr and out.read_text() == "mine"
