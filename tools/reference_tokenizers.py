#!/usr/bin/env python3
"""Golden values for the tokenizers, made by the reference implementations.

    reference_tokenizers.py golden MODEL.gguf NAME [--strings N] [--out DIR] [--characters]   writes DIR/NAME.golden
    reference_tokenizers.py check MODEL.gguf [--first N] [--strings N]         compares the reference with llama.cpp, string by string, and says why they differ
    reference_tokenizers.py strings FIRST N                                    prints generated strings as JSON
    reference_tokenizers.py ranges [--old]                                     prints tests/golden/tokenizer/ranges{,_old}.txt

The reference is rebuilt from the tables of the GGUF file itself: `tokenizers` for byte-level BPE and WordPiece, `sentencepiece` for
SentencePiece BPE. Needs numpy, gguf 0.19.0, tokenizers 0.23.3 and sentencepiece 0.2.3, for
`check` also llama-cpp-python 0.3.36. --characters: a SentencePiece vocabulary as Gemma 4 would have it, as BPE over characters whose
merges are all pairs of normal tokens that make one, best score first (test_tokenizer.c makes the same file). The golden files hold one hash for each 1,000 strings, so
that the tests need none of this: tests/golden/test_tokenizer.c has the same generator.

Strings with an even number are encoded as untrusted text (nothing in them is a control token), those with an odd number as trusted.
"""
import argparse
import hashlib
import json
import os
import re
import struct
import sys
import unicodedata

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden", "tokenizer")
BLOCK = 1000
MASK = (1 << 64) - 1

# ---- the generator (the same in test_tokenizer.c) ---------------------------------------------------------------------


class Draw:
    """splitmix64"""

    def __init__(self, index):
        self.x = (index * 0xD1342543DE82EF95 + 0x50656E73746F636B) & MASK

    def below(self, n):
        self.x = (self.x + 0x9E3779B97F4A7C15) & MASK
        z = self.x
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        return (z ^ z >> 31) % n


def read_lines(name):
    with open(os.path.join(HERE, name), "rb") as f:
        return f.read().split(b"\n")[:-1]


SPACES = [0x20, 0x20, 0x20, 0x09, 0x0A, 0x0A, 0x0D, 0xA0, 0x2003, 0x3000, 0x2028, 0x85, 0x0B, 0x200B, 0x2581, 0x0C]
DIGITS = [0x30, 0x30, 0x30, 0x660, 0x966, 0xFF10, 0x1D7CE, 0x2460]
EMOJI = [(0x1F300, 0x1F64F), (0x1F680, 0x1F6C5), (0x1F900, 0x1F9FF), (0x2600, 0x26FF)]
BROKEN = [b"\xC0\x80", b"\xED\xA0\x80", b"\xF4\x90\x80\x80", b"\xE2\x82", b"\xF0\x9F\x98", b"\xFE", b"\xF8\x88\x80\x80\x80", b"\xC3"]


class Generator:
    def __init__(self, ranges="ranges.txt"):
        self.phrases = read_lines("phrases.txt")
        self.specials = read_lines("specials.txt")
        self.marks = read_lines("marks.txt")
        self.ranges = [tuple(int(x, 16) for x in line.split()) for line in read_lines(ranges)]

    def emoji(self, d):
        low, high = EMOJI[d.below(len(EMOJI))]
        out = chr(low + d.below(high - low + 1))
        how = d.below(5)
        if how == 0:
            out += chr(0x1F3FB + d.below(5))
        elif how == 1:
            out += "\uFE0F"
        elif how == 2:
            out += "\u200D" + chr(low + d.below(high - low + 1))
        elif how == 3:
            out += chr(0x1F1E6 + d.below(26)) + chr(0x1F1E6 + d.below(26))
        return out.encode()

    def piece(self, d):
        kind = d.below(16)
        if kind < 4:
            phrase = self.phrases[d.below(len(self.phrases))]
            if d.below(4):
                return phrase
            start = d.below(len(phrase) + 1)
            return phrase[start:start + d.below(len(phrase) - start + 1)]
        if kind < 7:
            low, high = self.ranges[d.below(len(self.ranges))]
            return "".join(chr(low + d.below(high - low + 1)) for _ in range(1 + d.below(12))).encode()
        if kind == 7:
            return bytes(0x20 + d.below(95) for _ in range(1 + d.below(16)))
        if kind == 8:
            return "".join(chr(SPACES[d.below(len(SPACES))]) for _ in range(1 + d.below(6))).encode()
        if kind == 9:
            base = DIGITS[d.below(len(DIGITS))]
            return "".join(chr(base + d.below(10)) for _ in range(1 + d.below(7))).encode()
        if kind == 10:
            return b"".join(self.emoji(d) for _ in range(1 + d.below(3)))
        if kind == 11:
            out = ""
            for _ in range(1 + d.below(4)):
                c = d.below(0x41)
                out += chr(c if c < 0x20 else c - 0x20 + 0x7F)
            return out.encode()
        if kind == 12:
            return bytes(0x80 + d.below(128) for _ in range(1 + d.below(4)))
        if kind == 13:
            return BROKEN[d.below(len(BROKEN))]
        if kind == 14:
            return self.specials[d.below(len(self.specials))]
        return self.marks[d.below(len(self.marks))]

    def string(self, index):
        d = Draw(index)
        return b"".join(self.piece(d) for _ in range(1 + d.below(8)))


# ---- the references ----------------------------------------------------------------------------------------------------


class File:
    """The tables of a GGUF file that make its tokenizer."""

    def __init__(self, path):
        from gguf import GGUFReader
        fields = GGUFReader(path).fields

        def get(key, default=None):
            field = fields.get("tokenizer.ggml." + key)
            return default if field is None else field.contents()

        field = fields["tokenizer.ggml.tokens"]
        self.tokens = [bytes(field.parts[i]).decode("utf-8", "surrogateescape") for i in field.data]
        self.types = get("token_type", [1] * len(self.tokens))
        self.scores = get("scores")
        self.merges = get("merges")
        self.model = get("model")
        self.pre = get("pre", "default")
        self.unk = get("unknown_token_id", 0 if self.model == "llama" else 100 if self.model == "bert" else None)
        self.add_space_prefix = get("add_space_prefix", self.model == "llama")
        name = fields.get("general.name")
        self.rstrip = name is not None and "phi3" in name.contents().lower().replace("-", "")

    def as_characters(self):
        normal = {t: i for i, t in enumerate(self.tokens) if self.types[i] == 1}
        self.model = "gemma4"
        self.merges = [f"{t[:k]} {t[k:]}" for t in sorted(normal, key=lambda t: -self.scores[normal[t]])
                       for k in range(1, len(t)) if t[:k] in normal and t[k:] in normal]
        return self

    def ids(self, *types):
        return [i for i, t in enumerate(self.types) if t in types]


NFC = ("qwen2", "qwen35")
# Unicode's White_Space, which `tokenizers` strips after an added token; Python's str.lstrip would take U+001C to U+001F too.
WHITE_SPACE = "\t\n\v\f\r \x85\xA0\u1680\u2028\u2029\u202F\u205F\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def pretokenizer(pre):
    """The pre-tokenizer of the tokenizer.json that ships with each family."""
    from tokenizers import Regex, pre_tokenizers as p
    byte_level = lambda regex: p.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=regex)
    split = lambda regex: p.Split(Regex(regex), "isolated")
    words = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    cased = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
             r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
             r"\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    contraction = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    if pre in ("gpt-2",):
        return byte_level(True)
    if pre in ("smollm", "starcoder", "refact"):
        return p.Sequence([p.Digits(individual_digits=True), byte_level(True)])
    if pre in ("llama-bpe", "llama3"):
        return p.Sequence([split(words % "{1,3}"), byte_level(False)])
    if pre == "qwen2":
        return p.Sequence([split(words % ""), byte_level(False)])
    if pre == "qwen35":
        return p.Sequence([split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
                                 r"\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level(False)])
    if pre == "gpt-4o":
        return p.Sequence([split(cased % (contraction, contraction, "{1,3}")), byte_level(False)])
    if pre == "tekken":
        return p.Sequence([split(cased % ("", "", "")), byte_level(False)])
    if pre == "falcon":
        return p.Sequence([p.Punctuation("contiguous"), byte_level(True), split("[0-9][0-9][0-9]")])
    if pre == "deepseek-llm":
        return p.Sequence([split("[\r\n]"), split(r"\s?[%s]+" % deepseek_letters()), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
                           split("[一-龥ࠀ-一가-퟿]+"), p.Digits(individual_digits=False), byte_level(False)])
    if pre == "deepseek-coder":
        return p.Sequence([split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"),
                           p.Digits(individual_digits=True), byte_level(False)])
    if pre == "deepseek-v3":
        return p.Sequence([split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"),
                           split(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
                                 r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), byte_level(False)])
    sys.exit(f"no reference is known here for the pre-tokenizer '{pre}'")


def deepseek_letters():
    """The set as src/engine/tokenizer_pre.c has it, which is the model's own."""
    source = open(os.path.join(HERE, "..", "..", "..", "src", "engine", "tokenizer_pre.c"), encoding="utf-8").read()
    table = re.search(r"deepseek_letters\[\] = \{(.*?)\};", source, re.S).group(1)
    return "".join("\\x{%s}-\\x{%s}" % pair for pair in re.findall(r"\{0x([0-9A-F]+), 0x([0-9A-F]+)\}", table))


class ByTokenizers:
    def __init__(self, file):
        from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
        vocab = {t: i for i, t in enumerate(file.tokens)}

        def build(special):
            if file.model == "bert":
                bert = {}
                for i, t in enumerate(file.tokens):
                    bert[t if file.types[i] == 3 else t[1:] if t.startswith("\u2581") else "##" + t] = i
                tok = Tokenizer(models.WordPiece(bert, unk_token=file.tokens[file.unk], max_input_chars_per_word=100))
                tok.normalizer = normalizers.BertNormalizer(lowercase=True)
                tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            elif file.model == "gemma4":
                merges = [tuple(m.split(" ", 1)) for m in file.merges]
                tok = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token=file.tokens[file.unk]))
                tok.normalizer = normalizers.Replace(" ", "\u2581")
                tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
            else:
                merges = [tuple(m.split(" ", 1)) for m in file.merges]
                ignore = file.pre in ("llama-bpe", "llama3", "tekken")
                # No unk_token: GGUF files of SmolLM2 and StarCoder name <|endoftext|>, which tokenizer_config.json has for form's sake, but
                # the model in tokenizer.json has none. What the vocabulary has no byte for is left out (huggingface/smollm, issue 81).
                tok = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore))
                tok.pre_tokenizer = pretokenizer(file.pre)
            types = (2, 3, 4) if special else (4,)
            tok.add_special_tokens([AddedToken(file.tokens[i], normalized=False) for i in file.ids(*types)])
            return tok

        self.plain, self.trusted = build(False), build(True)
        self.nfc = file.pre in NFC
        self.bert = file.model == "bert"
        self.fast = pre_tokenizers.Punctuation("isolated")

    def isolate(self, char):
        """Punctuation that came after the fast tokenizer's tables (Unicode 8) stands alone in the slow one's, and so here."""
        late = ord(char) >= 0x80 and unicodedata.category(char)[0] == "P" and len(self.fast.pre_tokenize_str("a" + char + "a")) == 1
        return " " + char + " " if late else char

    def encode(self, text, trusted):
        if self.nfc:  # as the slow tokenizer of these models does it; the fast one's tables are of Unicode 9
            text = unicodedata.normalize("NFC", text)
        if self.bert and not text.isascii():
            text = "".join(map(self.isolate, text))
        return (self.trusted if trusted else self.plain).encode(text, add_special_tokens=False).ids


def varint(n):
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


class BySentencePiece:
    """A ModelProto written by hand: pieces (field 1: text 1, score 2, type 3), trainer_spec (2: model_type 3, byte_fallback 35, unk_id 40,
    bos_id 41, eos_id 42, pad_id 43), normalizer_spec (3: name 1, add_dummy_prefix 3, remove_extra_whitespaces 4, escape_whitespaces 5)."""

    def __init__(self, file):
        import sentencepiece
        field = lambda n, data: varint(n << 3 | 2) + varint(len(data)) + data
        number = lambda n, v: varint(n << 3) + varint(v & MASK)
        proto = b""
        for i, text in enumerate(file.tokens):
            kind = 2 if i == file.unk else 3 if file.types[i] == 2 else file.types[i]
            piece = text.replace(" ", "\u2581") if kind in (1, 4, 5) else text
            proto += field(1, field(1, piece.encode("utf-8", "surrogateescape")) + varint(2 << 3 | 5) +
                           struct.pack("<f", file.scores[i]) + number(3, kind))
        proto += field(2, number(3, 2) + number(35, 1) + number(40, file.unk) + number(41, -1) + number(42, -1) + number(43, -1))
        proto += field(3, field(1, b"identity") + number(3, int(file.add_space_prefix)) + number(4, 0) + number(5, 1))
        self.sp = sentencepiece.SentencePieceProcessor()
        self.sp.LoadFromSerializedProto(proto)
        self.add_space_prefix = file.add_space_prefix
        self.rstrip = file.rstrip
        self.ids = {t: i for i, t in enumerate(file.tokens)}
        self.exempt = ("<unk>", "<s>", "<|endoftext|>")
        # sentencepiece knows no control tokens in text; what does (transformers, llama.cpp) cuts them out and encodes what lies between,
        # each part with its own space before it. User-defined tokens of a model with such spaces were added later in the same way.
        added = (4,) if self.add_space_prefix else ()
        self.cut = {False: self.splitter(file, added), True: self.splitter(file, (2, 3) + added)}

    @staticmethod
    def splitter(file, types):
        texts = sorted((file.tokens[i] for i in file.ids(*types)), key=len, reverse=True)
        return re.compile("(" + "|".join(re.escape(t) for t in texts) + ")") if texts else None

    def encode(self, text, trusted):
        cut = self.cut[trusted]
        if not cut:
            return self.sp.EncodeAsIds(text)
        ids = []
        strip = False
        for i, part in enumerate(cut.split(text)):
            if i % 2:
                ids.append(self.ids[part])
                strip = self.rstrip and part not in self.exempt
                continue
            if strip:
                part = part.lstrip(WHITE_SPACE)
            strip = False
            if part:
                ids += self.sp.EncodeAsIds(part)
        return ids


def reference(file):
    return BySentencePiece(file) if file.model == "llama" else ByTokenizers(file)


def golden(args):
    file = File(args.model)
    ref, gen = reference(file.as_characters() if args.characters else file), Generator(args.ranges)
    lines = ["# %d strings a line; made by tools/reference_tokenizers.py from the file's own tables" % BLOCK, args.ranges]
    for block in range(args.strings // BLOCK):
        h = hashlib.sha256()
        for index in range(block * BLOCK, (block + 1) * BLOCK):
            ids = ref.encode(gen.string(index).decode("utf-8", "replace"), index % 2 == 1)
            h.update(struct.pack("<%di" % (len(ids) + 1), *ids, -1))
        lines.append(h.hexdigest()[:16])
        print(f"\r{args.name}: {(block + 1) * BLOCK}", end="", file=sys.stderr)
    print(file=sys.stderr)
    with open(os.path.join(args.out, args.name + ".golden"), "w") as f:
        f.write("\n".join(lines) + "\n")


# ---- llama.cpp, string by string -----------------------------------------------------------------------------------------


def llama(model):
    """The package llama-cpp-python, whose build brings its own libllama (LLAMA_CPP_LIB_PATH names a folder with another one)."""
    import llama_cpp
    m = llama_cpp.Llama(model, vocab_only=True, verbose=False)
    return lambda text, trusted: m.tokenize(text.encode(), add_bos=False, special=trusted)


def known_causes(file, other):
    """Where llama.cpp is known to part from the reference: (what it does, the text without what leads there). A difference is put down to
    a cause only when it is gone without it."""
    causes = []
    if file.model == "gpt2":
        from tokenizers import pre_tokenizers
        alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        known = set(file.tokens)
        lacking = lambda char: any(c not in known for piece, _ in alphabet.pre_tokenize_str(char) for c in piece)
        causes.append(("a byte that the vocabulary lacks keeps its neighbours apart; in the reference they merge",
                       lambda text: "".join(c for c in text if not lacking(c))))
    if file.model == "llama":
        demoted = [file.tokens[i] for i in file.ids(4) if other(file.tokens[i], False) != [i]]
        if demoted:
            causes.append(("user-defined tokens that look like control tokens (%s) are taken for such" % " ".join(demoted),
                           lambda text: re.sub("|".join(map(re.escape, demoted)), ".", text)))
        causes.append(("user-defined tokens are looked for before spaces become U+2581, so not in a text with that character",
                       lambda text: text.replace("\u2581", ".")))
    return causes


def check(args):
    file = File(args.model)
    ref, gen, other = reference(file), Generator(args.ranges), llama(args.model)
    causes = known_causes(file, other)
    counts, open_ones = {name: 0 for name, _ in causes}, 0
    for index in range(args.first, args.first + args.strings):
        trusted = index % 2 == 1
        text = gen.string(index).decode("utf-8", "replace")
        ids, theirs = ref.encode(text, trusted), other(text, trusted)
        if ids == theirs:
            continue
        for name, without in causes:
            text = without(text)
            if ref.encode(text, trusted) == other(text, trusted):
                counts[name] += 1
                break
        else:
            open_ones += 1
            if open_ones <= args.show:
                print(f"string {index} {text!r}\n  reference {ids}\n  llama.cpp {theirs}")
    for name, n in counts.items():
        print(f"{n} of {args.strings} strings differ because in llama.cpp {name}")
    print(f"{open_ones} of {args.strings} strings differ for no known reason")
    sys.exit(1 if open_ones else 0)


# ---- the lists -----------------------------------------------------------------------------------------------------------


def assigned(c):
    return c < 0x110000 and unicodedata.category(chr(c)) not in ("Cn", "Cs")


def print_runs(wanted):
    start = None
    for c in range(0x110001):
        inside = c < 0x110000 and wanted(c)
        if start is not None and (not inside or c % 0x1000 == 0):
            print(f"{start:X} {c - 1:X}")
            start = None
        if inside and start is None:
            start = c


def print_ranges(args):
    """Runs of code points that are assigned in Unicode 14, which every library in use knows. With --old only those whose punctuation and
    accents the `tokenizers` package, which has tables of Unicode 8 for these two, sees as Unicode 14 does."""
    assert unicodedata.unidata_version.startswith("14."), "run this with a Python whose Unicode is 14 (3.11)"
    if not args.old:
        return print_runs(assigned)
    from tokenizers import normalizers, pre_tokenizers
    punctuation = pre_tokenizers.Punctuation("isolated")
    bert = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=True, lowercase=False)

    def agrees(c):
        if not assigned(c):
            return False
        char = chr(c)
        category = unicodedata.category(char)
        if c >= 0x80 and (len(punctuation.pre_tokenize_str("a" + char + "a")) == 3) != (category[0] == "P"):
            return False
        plain = "" if category in ("Cc", "Cf", "Co") else " " if char.isspace() else char
        plain = "".join(x for x in unicodedata.normalize("NFD", plain) if unicodedata.category(x) != "Mn")
        return c < 0x80 or bert.normalize_str(char) == plain

    print_runs(agrees)


def print_strings(args):
    gen = Generator()
    for index in range(args.first, args.first + args.count):
        print(json.dumps(gen.string(index).decode("utf-8", "replace")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("golden", help="write NAME.golden")
    p.add_argument("model")
    p.add_argument("name")
    p.add_argument("--characters", action="store_true")
    p.add_argument("--strings", type=int, default=100000)
    p.add_argument("--out", default=HERE)
    p.add_argument("--ranges", default="ranges.txt")
    p.set_defaults(run=golden)
    p = commands.add_parser("check", help="compare with llama-cpp-python")
    p.add_argument("model")
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--strings", type=int, default=100000)
    p.add_argument("--show", type=int, default=10)
    p.add_argument("--ranges", default="ranges.txt")
    p.set_defaults(run=check)
    p = commands.add_parser("strings", help="print generated strings as JSON")
    p.add_argument("first", type=int)
    p.add_argument("count", type=int)
    p.set_defaults(run=print_strings)
    p = commands.add_parser("ranges", help="print ranges.txt, or ranges_old.txt")
    p.add_argument("--old", action="store_true")
    p.set_defaults(run=print_ranges)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
