#!/usr/bin/env python3
"""Makes tests/golden/templates/expected.json: what real chat templates render to, as `transformers` renders them.

    golden_templates.py [--templates DIR] [--out FILE]          write the golden file
    golden_templates.py --show TEMPLATE CONVERSATION            print one rendering (to look into a difference)

Needs the Python packages transformers and jinja2. Templates are read from DIR (default $PENSTOCK_TEST_DATA/templates or
../shared/data/templates), conversations from tests/golden/templates/conversations.json. The golden file holds no text of a
template: for each pair the number of bytes and the first 16 hex digits of the SHA-256 of the expected text, or the message
of the error that it raises. The clock of strftime_now stands at 2026-02-03 04:05:06 UTC.
"""
import argparse
import datetime
import hashlib
import json
import os
import sys

from transformers.utils import chat_template_utils

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HERE = os.path.join(ROOT, "tests", "golden", "templates")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 2, 3, 4, 5, 6)


def render(template, conversation):
    """(text, None) or (None, message)."""
    variables = dict(conversation)
    messages = variables.pop("messages")
    tools = variables.pop("tools", None)
    documents = variables.pop("documents", None)
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], tools=tools, documents=documents, chat_template=template, **TOKENS, **variables
        )
        return rendered[0], None
    except Exception as error:  # whatever Python raises is what a user would read
        return None, str(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data = os.environ.get("PENSTOCK_TEST_DATA", os.path.join(ROOT, "..", "shared", "data"))
    parser.add_argument("--templates", default=os.path.join(data, "templates"))
    parser.add_argument("--out", default=os.path.join(HERE, "expected.json"))
    parser.add_argument("--show", nargs=2, metavar=("TEMPLATE", "CONVERSATION"))
    args = parser.parse_args()
    chat_template_utils.datetime = FixedClock
    with open(os.path.join(HERE, "conversations.json"), encoding="utf-8") as f:
        conversations = json.load(f)

    def read(name):
        with open(os.path.join(args.templates, name), encoding="utf-8", newline="") as f:
            return f.read()

    if args.show:
        text, message = render(read(args.show[0]), conversations[args.show[1]])
        sys.stdout.write(text if message is None else "error: " + message + "\n")
        return
    lines = []
    for name in sorted(n for n in os.listdir(args.templates) if n.endswith(".jinja")):
        template = read(name)
        row = {}
        for key, conversation in conversations.items():
            text, message = render(template, conversation)
            if message is None:
                raw = text.encode("utf-8")
                row[key] = [len(raw), hashlib.sha256(raw).hexdigest()[:16]]
            else:
                row[key] = message
        lines.append(json.dumps(name) + ": " + json.dumps(row, ensure_ascii=False, separators=(",", ":")))
    with open(args.out, "w", encoding="utf-8") as f:
        f.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
