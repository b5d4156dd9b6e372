/* Prompt-lookup drafts. A scan from the end: at 8,192 tokens it costs two microseconds, a thousandth of a step, so no index is kept. */
#include "engine/draft.h"

#include "engine/engine.h"

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

/* As make_drafts and pick_tokens in engine.c: the first token comes with the prompt; a step gives the drafts that are right and one token more. */
void pst_engine_lookup_replay(const int32_t *tokens, size_t n_prompt, size_t n, int64_t *ret_steps,
                              int64_t *ret_drafted) {
  int64_t steps = 0, drafted = 0;
  for (size_t at = n_prompt; at < n; steps++) {
    int32_t draft[PST_ENGINE_MAX_DRAFT] = {0};
    int most = PST_MIN((int)(n - at - 1), PST_ENGINE_MAX_DRAFT);
    int n_draft = at > n_prompt && most > 0 ? pst_engine_draft_lookup(tokens, (int)at, most, draft) : 0;
    size_t n_right = 0;
    while (n_right < (size_t)n_draft && draft[n_right] == tokens[at + n_right]) n_right++;
    drafted += n_draft;
    at += n_right + 1;
  }
  *ret_steps = steps;
  *ret_drafted = drafted;
}
