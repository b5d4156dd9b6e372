#!/usr/bin/env python3
"""Writes tests/golden/quantize.golden: the root-mean-square error of llama.cpp's own quantizers on rows that the test makes again.

    tools/golden_quantize.py LIBGGML_BASE.so > tests/golden/quantize.golden

LIBGGML_BASE.so is that of any build of llama.cpp or llama-cpp-python (0.3.36 was used). Needs numpy. The rows: 65,536 values from splitmix64,
all steps exact in float64, then rounded to float32 (tests/golden/test_quantize.c does the same).
"""
import ctypes
import sys

import numpy as np

N = 65536
# name: GGUF number, elements and bytes of a block
TYPES = {"Q8_0": (8, 32, 34), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24),
         "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
         "Q3_K": (11, 256, 110), "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136)}


def units(stream, n):
    """n draws in [0, 1) with 24 bits: splitmix64 of (stream << 40) + i."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(stream << 40)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 16777216.0


def normal(stream):
    return sum(units(stream + k, N) for k in range(12)) - 6.0


SETS = {
    "normal": lambda: normal(1) * 0.015625,
    "heavy": lambda: normal(21) * 0.015625 / (0.0625 + units(40, N)),
    "uniform": lambda: units(50, N) * 2 - 1,
    "positive": lambda: np.abs(normal(61)),
}


def main():
    ggml = ctypes.CDLL(sys.argv[1])
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    print("# rows type rms-error of llama.cpp; made by tools/golden_quantize.py")
    for name, make in SETS.items():
        x = make().astype(np.float32)
        for kind, (number, elements, size) in TYPES.items():
            packed = np.zeros(N // elements * size, np.uint8)
            ggml.ggml_quantize_chunk(number, x.ctypes.data, packed.ctypes.data, 0, 1, N, None)
            back = np.zeros(N, np.float32)
            dequantize = getattr(ggml, "dequantize_row_" + kind.lower().replace("_k", "_K"))
            dequantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
            dequantize.restype = None
            dequantize(packed.ctypes.data, back.ctypes.data, N)
            print(f"{name} {kind} {np.sqrt(np.mean((back.astype(np.float64) - x) ** 2)):.6e}")


if __name__ == "__main__":
    main()
