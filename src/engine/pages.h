/* The KV pages of one engine, as book-keeping only: which page holds which tokens, who uses it, what may be shared or evicted.
 * No tensor lives here, so that the scheduler can be replayed in virtual time. Owned by one thread. */
#ifndef PST_ENGINE_PAGES_H
#define PST_ENGINE_PAGES_H

#include <penstock/kernels.h>

/* Positions a page holds. A page starts at a multiple of it ("position-aligned"); attention works in blocks of the same size. */
#define PST_ENGINE_PAGE PST_KERNELS_PAGE

/* Names the content of a full page: the model state, every token before it and its own. */
typedef struct pst_engine_page_key {
  uint64_t a, b;
} pst_engine_page_key;

typedef struct pst_engine_pages pst_engine_pages;

pst_engine_pages *pst_engine_pages_create(int n_pages); /* NULL: out of memory */
void pst_engine_pages_free(pst_engine_pages *p);

/* The key of the page that follows `parent` and holds `tokens` (PST_ENGINE_PAGE of them). */
pst_engine_page_key pst_engine_page_key_root(uint64_t salt);
pst_engine_page_key pst_engine_page_key_next(pst_engine_page_key parent, const int32_t *tokens);

typedef enum pst_engine_page_state {
  PST_ENGINE_PAGE_ABSENT,
  PST_ENGINE_PAGE_PENDING, /* a running sequence is computing it */
  PST_ENGINE_PAGE_READY,
} pst_engine_page_state;

/* Looks a key up; READY also takes a reference and gives the page. */
pst_engine_page_state pst_engine_pages_find(pst_engine_pages *p, pst_engine_page_key key, const int32_t *tokens,
                                            int *ret_page);
/* Would find say READY? Takes nothing. */
bool pst_engine_pages_has(const pst_engine_pages *p, pst_engine_page_key key, const int32_t *tokens);
/* A free page, evicting the page that was unused longest; one reference. -1: none. */
int pst_engine_pages_take(pst_engine_pages *p);
/* A number that is another each time the page is taken. */
uint32_t pst_engine_pages_generation(const pst_engine_pages *p, int page);
/* Declares that `page` will hold `key`; false when another page has or awaits that key already (then it stays private). */
bool pst_engine_pages_announce(pst_engine_pages *p, int page, pst_engine_page_key key, const int32_t *tokens);
void pst_engine_pages_publish(pst_engine_pages *p, int page); /* an announced page is now computed */
/* Gives one reference back. A published page stays findable until evicted; an announced one is forgotten. */
void pst_engine_pages_release(pst_engine_pages *p, int page);
void pst_engine_pages_forget_unused(pst_engine_pages *p); /* drops every cached page nobody uses */

int pst_engine_pages_total(const pst_engine_pages *p);
int pst_engine_pages_available(const pst_engine_pages *p); /* free or evictable */
int pst_engine_pages_cached(const pst_engine_pages *p);    /* evictable */

#endif
