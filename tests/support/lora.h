/* Adapters compared. */
#ifndef PST_TESTS_SUPPORT_LORA_H
#define PST_TESTS_SUPPORT_LORA_H

#include <penstock/engine.h>

/* The same layers in the same order, with the same bits; fails the test where they are not. */
void test_lora_assert_same(const pst_engine_lora *a, const pst_engine_lora *b);

#endif
