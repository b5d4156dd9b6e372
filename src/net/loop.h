/* Private to net: what server and client need of the loop. */
#ifndef PST_NET_LOOP_H
#define PST_NET_LOOP_H

#include <event2/event.h>
#include <penstock/net.h>

/* A job for the end of the loop's present round, where no callback of libevent, llhttp or libcurl is on the stack. Embedded in its owner; putting
 * it in twice is one job. Loop thread only. */
typedef struct pst_net_later {
  pst_net_fn fn;
  void *arg;
  struct pst_net_later *prev, *next; /* NULL next: not queued */
} pst_net_later;

void pst_net_loop_later(pst_net_loop *loop, pst_net_later *job);
void pst_net_loop_forget(pst_net_later *job);
struct event_base *pst_net_loop_base(pst_net_loop *loop);

/* (Re-)arms a timer event; delay_us >= 0. */
void pst_net_event_arm_us(struct event *timer, int64_t delay_us);

#endif
