#!/usr/bin/env python3
"""Golden files of whole models, tests/golden/llama/: what llama.cpp continues, and how far it is from a float64 pass over the same weights.

    tools/golden_llama.py continuations NAME MODEL.gguf           writes NAME.continuations.json
    tools/golden_llama.py kl NAME MODEL.gguf [--engine PROGRAM]   writes NAME.kl.json; prints the full KL of llama.cpp and of Penstock
    tools/golden_llama.py kl ... --windows N                      the first N windows only, for models re-quantized to other types; writes nothing
    tools/golden_llama.py check NAME MODEL.gguf                   the float64 pass against llama.cpp with every weight in F32

NAME is smollm2 or gemma3 (the files of `make models`; build/models.env says where they lie). PROGRAM is build/<config>/bench/bench_logits (make
benches); without it only llama.cpp is measured. --out DIR puts the files elsewhere, --threads N (1) is what both programs use.

Needs numpy, the package `gguf` and llama-cpp-python (0.3.36 was used). Either install llama-cpp-python, or put the folder that holds its Python
sources on PYTHONPATH and let LLAMA_CPP_LIB_PATH name the folder of libllama.so of a build of its vendor/llama.cpp (bench/README.md says how to
build one; -DGGML_NATIVE=ON for the golden files); its sources want diskcache, jinja2 and typing_extensions. OPENBLAS_NUM_THREADS bounds numpy.

Continuations: 20 prompts written for this (PROMPTS; the last is long enough to leave Gemma's window of 512), 64 greedy tokens each, past any end
token; the prompt is one batch, then one token at a time. `gaps` are the differences of llama.cpp's two best tokens in log-probability at each step,
`near_tie` is the first step at which they lie within NEAR_TIE (-1: none): beyond it rounding decides, and continuations need not agree.
`exact_gaps` and `exact_near_tie` are the same of the float64 pass, given llama.cpp's tokens: llama.cpp's own rounding can make a near-tie look clear.

KL: the text is the first N_TEXTS abstracts of summarize/scitldr.jsonl.gz (Apache-2.0) in PENSTOCK_TEST_DATA, joined by blank lines; it is not
copied, the golden file has a hash of its tokens. 16 windows of 512 tokens, each beginning with the model's own BOS if its file asks for one, give
8,192 distributions over the next token. KL(float64 pass || program) is taken over the whole vocabulary; its standard error comes from a jackknife
over the windows. llama.cpp runs with its defaults but for n_ctx = n_batch = n_ubatch = 512: K and V as F16, flash attention "auto" (on for a CPU).

What is kept for the test, as 512 x 262,144 values cannot be: at every STRIDE-th position the TOP best tokens of the float64 pass with their
log-probabilities and the mass of the rest, and llama.cpp's KL over these TOP + 1 outcomes ("lumped": never more than the whole KL).
"""
import argparse
import ctypes
import gzip
import hashlib
import json
import math
import os
import pathlib
import platform
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
N_TOKENS, NEAR_TIE = 64, 0.15
WINDOW, N_WINDOWS, N_TEXTS, STRIDE, TOP = 512, 16, 60, 16, 32
ROWS = 32  # positions whose logits are compared at a time

PROMPTS = [
    "What is the capital of France, and which river runs through it?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about a lighthouse in winter.",
    "List five vegetables that grow well in a cold climate.",
    "How do I boil an egg so that the yolk stays soft?",
    "Translate into French: The train to Lyon leaves at seven in the morning.",
    "A shop sells pens at 3 for 2 dollars. How much do 12 pens cost? Show the steps.",
    "Sort these words by length: harbour, sea, lantern, tide, boat.",
    "Summarize: The mill was built in 1820 beside the weir. It ground corn until 1931, when the last miller retired, and is a museum today.",
    "Reply politely to a customer whose parcel has been lost.",
    "The history of the printing press begins",
    "Once upon a time, in a village between two rivers, there lived a clockmaker who",
    "Water freezes at 0 degrees Celsius and boils at",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "#include <stdio.h>\n\nint main(void) {\n  for (int i = 0; i < 10; i++)",
    "{\"name\": \"Ada Lovelace\", \"born\": 1815, \"field\": \"mathematics\"}\n{\"name\": \"Charles Darwin\", \"born\":",
    "Monday, Tuesday, Wednesday, Thursday,",
    "Die Hauptstadt von Deutschland ist",
    "Dear Sir or Madam,\n\nI am writing to apply for the position of",
]
# The last one: the start of the Apache licence as it stands in the repository, over 512 tokens.
LONG_BYTES = 4096
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def prompts(name):
    texts = PROMPTS + [(ROOT / "LICENSE").read_bytes()[:LONG_BYTES].decode("ascii").rstrip()]
    # The first ten are questions: the instruct model gets them as its template would put them.
    return [CHAT.format(t) if name == "smollm2" and i < 10 else t for i, t in enumerate(texts)]


# ---- llama.cpp --------------------------------------------------------------------------------------------------------

class Llama:
    """A model in llama.cpp with one context, through the low-level bindings of llama-cpp-python."""

    def __init__(self, path, n_ctx, threads):
        import llama_cpp
        self.api = api = llama_cpp
        self.quiet = api.llama_log_callback(lambda level, text, user: None)
        api.llama_log_set(self.quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = api.GGML_TYPE_F16
        self.flash = params.flash_attn_type
        self.context = api.llama_init_from_model(self.model, params)
        self.vocab = api.llama_model_get_vocab(self.model)
        self.n_vocab = api.llama_vocab_n_tokens(self.vocab)
        self.batch = api.llama_batch_init(n_ctx, 0, 1)
        self.clear()

    def close(self):
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)

    def about(self):
        return f"llama-cpp-python {self.api.__version__}, {self.api.llama_print_system_info().decode().strip()}"

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self.position = 0

    def tokenize(self, text, special=True, bos=True):
        raw = text.encode()
        ids = (self.api.llama_token * (len(raw) + 8))()
        n = self.api.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), bos, special)
        return list(ids[:n])

    def bos(self):
        return [self.api.llama_vocab_bos(self.vocab)] if self.api.llama_vocab_get_add_bos(self.vocab) else []

    def run(self, ids, every):
        """Appends ids; float32 logits of every one of them, or of the last. They live until the next call."""
        for i, token in enumerate(ids):
            self.batch.token[i] = token
            self.batch.pos[i] = self.position + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = every or i == len(ids) - 1
        self.batch.n_tokens = len(ids)
        if self.api.llama_decode(self.context, self.batch):
            sys.exit("llama_decode failed")
        self.position += len(ids)
        rows = len(ids) if every else 1
        return np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (rows * self.n_vocab,)).reshape(rows, self.n_vocab)


def first_tie(gaps):
    return next((i for i, gap in enumerate(gaps) if gap < NEAR_TIE), -1)


def continuations(name, path, out, threads):
    llama, reference, rows = Llama(path, 2048, threads), Float64(path), []
    for text in prompts(name):
        llama.clear()
        prompt, tokens, gaps = llama.tokenize(text), [], []
        ids = prompt
        for _ in range(N_TOKENS):
            logits = llama.run(ids, False)[0]
            best = np.argpartition(logits, -2)[-2:]
            low, high = sorted(float(logits[i]) for i in best)
            tokens.append(int(np.argmax(logits)))
            gaps.append(round(high - low, 4))
            ids = tokens[-1:]
        states = reference.states(np.array(prompt + tokens[:-1]))[len(prompt) - 1:]
        best = np.sort(np.partition(reference.log_probs(states), -2, axis=1)[:, -2:], axis=1)
        exact = [round(float(gap), 4) for gap in best[:, 1] - best[:, 0]]
        rows.append({"prompt": text, "ids": prompt, "tokens": tokens, "near_tie": first_tie(gaps), "gaps": gaps,
                     "exact_near_tie": first_tie(exact), "exact_gaps": exact})
    about = {"about": "made by tools/golden_llama.py continuations", "peer": llama.about(), "near_tie_below": NEAR_TIE}
    write(out / f"{name}.continuations.json", about, rows)
    print(f"{name}: {len(rows)} prompts, {sum(r['near_tie'] < 0 for r in rows)} without a near-tie; "
          f"{sum(r['near_tie'] if r['near_tie'] >= 0 else N_TOKENS for r in rows)} tokens before one")


def write(path, about, rows):
    """One JSON document, a row to a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps(about, ensure_ascii=True)[:-1]
    lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows)
    path.write_text(f'{head}, "rows": [\n{lines}\n]}}\n', encoding="ascii")


# ---- the float64 pass ---------------------------------------------------------------------------------------------------

def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def turn(x, base, style):
    """Rotary position embedding of x[token][head][dim] at positions 0.. ("pairs": 2i with 2i+1; "halves": i with i + dim/2)."""
    n, _, dim = x.shape
    angle = np.arange(n)[:, None] * base ** (-2.0 * np.arange(dim // 2) / dim)
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    out = np.empty_like(x)
    first, second = (slice(0, None, 2), slice(1, None, 2)) if style == "pairs" else (slice(0, dim // 2), slice(dim // 2, None))
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def silu(x):
    return x / (1.0 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x ** 3)))


class Float64:
    """llama and gemma3 in float64: weights dequantized by the formats' formulas, nothing else rounded."""

    def __init__(self, path):
        import gguf
        reader = gguf.GGUFReader(path)
        keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer.")}
        self.architecture = a = keys["general.architecture"]
        if a not in ("llama", "gemma3") or any(".rope.scaling." in k for k in keys):
            sys.exit(f"{path}: the float64 pass knows llama and gemma3 without rope scaling")
        self.weights = {}
        for t in reader.tensors:
            self.weights[t.name] = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)
        unknown = [n for n in self.weights if n.endswith(".bias") or n == "rope_freqs.weight"]
        if unknown:
            sys.exit(f"{path}: the float64 pass does not know {unknown[0]}")
        self.gemma = a == "gemma3"
        self.n_layers, self.n_heads = keys[f"{a}.block_count"], keys[f"{a}.attention.head_count"]
        self.n_kv, self.width = keys[f"{a}.attention.head_count_kv"], keys[f"{a}.embedding_length"]
        self.head_dim = keys.get(f"{a}.attention.key_length", self.width // self.n_heads)
        self.eps, self.base = keys[f"{a}.attention.layer_norm_rms_epsilon"], keys[f"{a}.rope.freq_base"]
        self.window = keys.get(f"{a}.attention.sliding_window", 0)
        if keys.get(f"{a}.rope.dimension_count", self.head_dim) != self.head_dim:
            sys.exit(f"{path}: the float64 pass turns whole heads only")
        self.head = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def local(self, layer):
        """Gemma 3: five layers with a window and a base of their own, then one over everything."""
        return self.gemma and layer % 6 < 5

    def attend(self, layer, x):
        w, n = (lambda name: self.weights[f"blk.{layer}.{name}.weight"]), len(x)
        q = (x @ w("attn_q").T).reshape(n, self.n_heads, self.head_dim)
        k = (x @ w("attn_k").T).reshape(n, self.n_kv, self.head_dim)
        v = (x @ w("attn_v").T).reshape(n, self.n_kv, self.head_dim)
        if self.gemma:
            q, k = rms_norm(q, w("attn_q_norm"), self.eps), rms_norm(k, w("attn_k_norm"), self.eps)
        base, style = 10000.0 if self.local(layer) else self.base, "halves" if self.gemma else "pairs"
        q, k = turn(q, base, style), turn(k, base, style)
        back = np.arange(n)[:, None] - np.arange(n)[None, :]
        seen = (back >= 0) & (back < self.window) if self.local(layer) else back >= 0
        out = np.empty((n, self.n_heads, self.head_dim))
        for h in range(self.n_heads):
            kv = h // (self.n_heads // self.n_kv)
            score = np.where(seen, q[:, h] @ k[:, kv].T / math.sqrt(self.head_dim), -np.inf)
            p = np.exp(score - score.max(axis=1, keepdims=True))
            out[:, h] = p / p.sum(axis=1, keepdims=True) @ v[:, kv]
        return out.reshape(n, -1) @ w("attn_output").T

    def states(self, ids):
        """The final normed states of the tokens, [n][width]."""
        x = self.weights["token_embd.weight"][ids] * (math.sqrt(self.width) if self.gemma else 1.0)
        for layer in range(self.n_layers):
            w = lambda name: self.weights[f"blk.{layer}.{name}.weight"]
            y = self.attend(layer, rms_norm(x, w("attn_norm"), self.eps))
            x = x + (rms_norm(y, w("post_attention_norm"), self.eps) if self.gemma else y)
            y = rms_norm(x, w("ffn_norm"), self.eps)
            y = ((gelu if self.gemma else silu)(y @ w("ffn_gate").T) * (y @ w("ffn_up").T)) @ w("ffn_down").T
            x = x + (rms_norm(y, w("post_ffw_norm"), self.eps) if self.gemma else y)
        return rms_norm(x, self.weights["output_norm.weight"], self.eps)

    def log_probs(self, states):
        return log_softmax(states @ self.head.T)


def log_softmax(logits):
    """Of float64 rows, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


# ---- KL -----------------------------------------------------------------------------------------------------------------

def windows(llama, n_windows=N_WINDOWS):
    """Token ids of the windows, [n_windows][WINDOW]."""
    data = pathlib.Path(os.environ.get("PENSTOCK_TEST_DATA", ROOT.parent / "shared" / "data"))
    with gzip.open(data / "summarize" / "scitldr.jsonl.gz", "rt", encoding="utf-8") as f:
        texts = [json.loads(next(f))["text"] for _ in range(N_TEXTS)]
    ids, bos = llama.tokenize("\n\n".join(texts), special=False, bos=False), llama.bos()
    room = WINDOW - len(bos)
    if len(ids) < n_windows * room:
        sys.exit(f"the text has only {len(ids)} tokens")
    return np.array([bos + ids[i * room:(i + 1) * room] for i in range(n_windows)], np.int32)


class Tally:
    """KL to the float64 pass of one program, over all positions."""

    def __init__(self):
        self.kl, self.agree = [], []

    def add(self, p, log_p, logits):
        """A program's float32 logits beside the float64 pass; returns its log-probabilities."""
        log_q = log_softmax(logits.astype(np.float64))
        self.kl += list((p * (log_p - log_q)).sum(axis=1))
        self.agree += list(log_p.argmax(axis=1) == log_q.argmax(axis=1))
        return log_q

    def per_window(self):
        return np.array(self.kl).reshape(-1, WINDOW).mean(axis=1)


def jackknife(statistic, *columns):
    """A statistic of columns of window means, and its standard error."""
    n = len(columns[0])
    if n < 2:
        return statistic(*columns), math.nan
    without = np.array([statistic(*(np.delete(c, i) for c in columns)) for i in range(n)])
    return statistic(*columns), math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())


def show(name, tally, against=None):
    mean, error = jackknife(np.mean, tally.per_window())
    spread = "" if math.isnan(error) else f" (se {error:.1e})"
    line = f"{name:<10} mean KL {mean:.4e}{spread}, median {np.median(tally.kl):.2e}, worst {max(tally.kl):.2e}, argmax agrees " \
           f"{100 * np.mean(tally.agree):.2f}%"
    if against:
        ratio, error = jackknife(lambda a, b: a.mean() / b.mean(), tally.per_window(), against.per_window())
        line += f"; ratio to llama.cpp {ratio:.4f} (se {error:.4f})"
    print(line, flush=True)


def read_rows(pipe, n, n_vocab):
    raw = pipe.read(n * n_vocab * 4)
    if len(raw) != n * n_vocab * 4:
        sys.exit("the engine's logits ended early")
    return np.frombuffer(raw, np.float32).reshape(n, n_vocab)


def lumped(top, log_p, log_q):
    """KL over the tokens `top` and one outcome for all others."""
    p, q = np.exp(log_p[top]), np.exp(log_q[top])
    rest_p, rest_q = max(1.0 - p.sum(), 1e-300), max(1.0 - q.sum(), 1e-300)
    return float((p * (log_p[top] - log_q[top])).sum() + rest_p * (math.log(rest_p) - math.log(rest_q)))


def kl(name, path, out, engine, threads, n_windows):
    llama, reference = Llama(path, WINDOW, threads), Float64(path)
    ids = windows(llama, n_windows)
    theirs, ours, rows, process = Tally(), Tally(), [], None
    if engine:
        command = [engine, str(path), str(WINDOW), str(threads)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for at, window in enumerate(ids):
        states = reference.states(window)
        llama.clear()
        peer = llama.run(window, True)
        if process:
            process.stdin.write(window.tobytes())
            process.stdin.flush()
        for i in range(0, WINDOW, ROWS):
            log_p = reference.log_probs(states[i:i + ROWS])
            p = np.exp(log_p)
            log_q = theirs.add(p, log_p, peer[i:i + ROWS])
            if process:
                ours.add(p, log_p, read_rows(process.stdout, ROWS, llama.n_vocab))
            for k in range(ROWS):
                if (i + k) % STRIDE != STRIDE - 1:
                    continue
                top = np.argpartition(log_p[k], -TOP)[-TOP:]
                top = top[np.argsort(-log_p[k][top], kind="stable")]
                rows.append({"at": at * WINDOW + i + k, "llama_kl": float(f"{lumped(top, log_p[k], log_q[k]):.4e}"),
                             "rest": float(f"{max(1.0 - p[k][top].sum(), 0.0):.6e}"),
                             "ids": [int(t) for t in top], "logprobs": [round(float(v), 6) for v in log_p[k][top]]})
        print(f"window {at + 1} of {len(ids)}: llama.cpp {np.mean(theirs.kl[-WINDOW:]):.3e}"
              + (f", Penstock {np.mean(ours.kl[-WINDOW:]):.3e}" if process else ""), file=sys.stderr, flush=True)
    about = {"about": "made by tools/golden_llama.py kl", "peer": llama.about(), "flash_attention": llama.flash, "n_texts": N_TEXTS,
             "window": WINDOW, "n_windows": len(ids), "bos": llama.bos(), "tokens_sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
             "llama_full_kl": float(f"{np.mean(theirs.kl):.5e}")}
    if n_windows == N_WINDOWS:
        write(out / f"{name}.kl.json", about, rows)
    print(f"{name}: {ids.size} tokens of text; {llama.about()}; {platform.machine()}")
    show("llama.cpp", theirs)
    if process:
        process.stdin.close()
        show("Penstock", ours, theirs)
        if process.wait():
            sys.exit("the engine failed")


# ---- is the float64 pass right? -----------------------------------------------------------------------------------------

def check(path, threads):
    """llama.cpp over the same weights as F32, one window: next to nothing remains of its KL, so the rest was its rounding of activations."""
    import gguf
    import tempfile
    reference = Float64(path)
    reader = gguf.GGUFReader(path)
    with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
        writer = gguf.GGUFWriter(f.name, reference.architecture)
        for key, field in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture":
                continue
            kind, sub = field.types[0], field.types[-1]
            writer.add_key_value(key, field.contents(), kind, sub_type=sub if kind == gguf.GGUFValueType.ARRAY else None)
        for t in reader.tensors:
            writer.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        llama, tally = Llama(f.name, WINDOW, threads), Tally()
        window = windows(llama, 1)[0]
        log_p = reference.log_probs(reference.states(window))
        tally.add(np.exp(log_p), log_p, llama.run(window, True))
    show("llama F32", tally)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["continuations", "kl", "check"])
    parser.add_argument("name", choices=["smollm2", "gemma3"])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--engine", help="build/<config>/bench/bench_logits")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests" / "golden" / "llama")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", type=int, default=N_WINDOWS, help="of the KL")
    args = parser.parse_args()
    if args.what == "continuations":
        continuations(args.name, args.model, args.out, args.threads)
    elif args.what == "kl":
        kl(args.name, args.model, args.out, args.engine, args.threads, args.windows)
    else:
        check(args.model, args.threads)


if __name__ == "__main__":
    main()
