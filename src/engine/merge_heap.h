/* The heap in which possible merges of neighbouring symbols wait; smallest key first. Both BPE tokenizers use it, so it is here, inline. */
#ifndef PENSTOCK_ENGINE_MERGE_HEAP_H
#define PENSTOCK_ENGINE_MERGE_HEAP_H

#include <stddef.h>
#include <stdint.h>

/* A piece of text that is, or will be, one token. Symbols are a list over an array, in the order of the text. */
typedef struct merge_symbol {
  int32_t id;             /* -1: no token */
  int32_t previous, next; /* indexes; -1: none */
  int32_t at, n;          /* bytes; SentencePiece only. n 0: merged into its left neighbour */
} merge_symbol;

typedef struct merge_candidate {
  uint64_t key; /* priority << 32 | index of the left symbol: of equal priorities the leftmost comes first */
  int32_t a, b, c;
} merge_candidate;

/* The caller has made room. */
static inline void merge_heap_push(merge_candidate *heap, size_t *n, merge_candidate candidate) {
  size_t i = (*n)++;
  while (i > 0 && candidate.key < heap[(i - 1) / 2].key) {
    heap[i] = heap[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  heap[i] = candidate;
}

/* *n > 0. */
static inline merge_candidate merge_heap_pop(merge_candidate *heap, size_t *n) {
  merge_candidate top = heap[0], last = heap[--*n];
  size_t i = 0;
  for (;;) {
    size_t child = 2 * i + 1;
    if (child >= *n) break;
    if (child + 1 < *n && heap[child + 1].key < heap[child].key) child++;
    if (heap[child].key >= last.key) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = last;
  return top;
}

#endif
