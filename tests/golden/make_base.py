#!/usr/bin/env python3
"""Writes base_golden.h: what CPython gives for the inputs that test_base_golden.c draws.

    tests/golden/make_base.py >tests/golden/base_golden.h

Inputs are draws of Philox-2x64-10, written here a second time; results are compared by SHA-256 (hashlib) over a batch, so the
table stays small while each batch covers thousands of inputs. Every batch hashes the results in order, each followed by a zero
byte or a newline. The Unicode blocks below are full since long, so any Python 3 with any later Unicode version agrees.
"""
import hashlib
import math
import struct
import unicodedata

MASK = (1 << 64) - 1
N_BATCHES = 4
N_STRINGS = 3000
N_NUMBERS = 5000
N_TEXTS = 400
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Bytes at the edges of the ranges of table 3-7 of the Unicode standard.
EDGES = bytes([0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED,
               0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF])
# Latin, marks, Greek, Cyrillic, Devanagari, Jamo, letterlike, kana, syllables, compatibility ideographs, full width, music
BLOCKS = [(0x41, 0x250), (0x300, 0x370), (0x391, 0x3A2), (0x400, 0x500), (0x900, 0x980), (0x1100, 0x1200),
          (0x2100, 0x2150), (0x3041, 0x3097), (0xAC00, 0xD7A4), (0xF900, 0xFA6E), (0xFF01, 0xFFBF), (0x1D15E, 0x1D165)]


def philox(seed, stream, counter):
    left, right, key = counter, stream, seed
    for _ in range(10):
        product = left * 0xD2B74407B1CE6E93
        left, right = (product >> 64) ^ key ^ right, product & MASK
        key = (key + 0x9E3779B97F4A7C15) & MASK
    return left


class Draws:
    def __init__(self, seed, stream):
        self.seed, self.stream, self.counter = seed, stream, 0

    def next(self):
        self.counter += 1
        return philox(self.seed, self.stream, self.counter - 1)


def broken_utf8(batch, index):
    draws = Draws(batch, index)
    length = draws.next() % 16
    out = bytearray()
    for _ in range(length):
        x = draws.next()
        out.append(EDGES[(x >> 8) % len(EDGES)] if x & 3 else x >> 8 & 255)
    return bytes(out)


def marked_text(batch, index):
    draws = Draws(batch + 1000, index)
    out = []
    for _ in range(draws.next() % 64):
        x = draws.next()
        low, high = BLOCKS[(x & 255) % len(BLOCKS)]
        out.append(chr(low + (x >> 8) % (high - low)))
    return "".join(out)


def ecmascript(value):
    """Number::toString from Python's repr, whose digits are the closest among the shortest too."""
    if value == 0:
        return "0"
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = whole + fraction
    point = len(whole) + int(exponent or 0) - (len(digits) - len(digits.lstrip("0")))
    digits = digits.strip("0")
    k = len(digits)
    if k <= point <= 21:
        text = digits + "0" * (point - k)
    elif 0 < point <= 21:
        text = digits[:point] + "." + digits[point:]
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        text = digits[0] + ("." + digits[1:] if k > 1 else "") + "e%+d" % (point - 1)
    return ("-" if value < 0 else "") + text


def number(batch, index):
    """Bits at random, edges of binades, decimal fractions, integers: a quarter each. None: not finite."""
    bits, kind = philox(batch + 2000, index, 0), index % 4
    if kind == 1:
        bits = (bits & 0xFFF0000000000000) + (bits % 5 - 2 & MASK) & MASK
    if kind == 2:
        return (bits >> 20) % 10**9 / 10.0 ** (bits % 23)
    if kind == 3:
        return float(bits >> bits % 64)
    value = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value if math.isfinite(value) else None


def table(name, rows):
    print(f"static const char *const {name}[] = {{")
    for row in rows:
        print(f'    "{row}",')
    print("};")


def main():
    print("/* Written by tests/golden/make_base.py: do not edit. */")
    for name in ("N_BATCHES", "N_STRINGS", "N_NUMBERS", "N_TEXTS"):
        print(f"#define GOLDEN_{name} {globals()[name]}")
    utf8, numbers, forms = [], [], {form: [] for form in FORMS}
    for batch in range(N_BATCHES):
        hash_utf8, hash_numbers = hashlib.sha256(), hashlib.sha256()
        for index in range(N_STRINGS):
            hash_utf8.update(broken_utf8(batch, index).decode("utf-8", "replace").encode() + b"\0")
        for index in range(N_NUMBERS):
            value = number(batch, index)
            if value is not None:
                hash_numbers.update(ecmascript(value).encode() + b"\n")
        utf8.append(hash_utf8.hexdigest())
        numbers.append(hash_numbers.hexdigest())
        texts = [marked_text(batch, index) for index in range(N_TEXTS)]
        for form in FORMS:
            joined = b"".join(unicodedata.normalize(form, text).encode() + b"\0" for text in texts)
            forms[form].append(hashlib.sha256(joined).hexdigest())
    table("golden_utf8", utf8)
    table("golden_numbers", numbers)
    for form in FORMS:
        table("golden_" + form.lower(), forms[form])


if __name__ == "__main__":
    main()
