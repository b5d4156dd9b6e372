#include "support/lora.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

void test_lora_assert_same(const pst_engine_lora *a, const pst_engine_lora *b) {
  assert_int_equal(a->n_targets, b->n_targets);
  for (size_t i = 0; i < a->n_targets; i++) {
    const pst_engine_lora_target *x = &a->targets[i], *y = &b->targets[i];
    assert_string_equal(x->name, y->name);
    assert_int_equal(x->rank, y->rank);
    assert_int_equal(x->n_in, y->n_in);
    assert_int_equal(x->n_out, y->n_out);
    assert_memory_equal(x->a, y->a, (size_t)(x->rank * x->n_in) * sizeof *x->a);
    assert_memory_equal(x->b, y->b, (size_t)(x->rank * x->n_out) * sizeof *x->b);
  }
}
