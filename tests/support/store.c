#include "support/store.h"

pst_store *test_store;
pst_error test_error;

int test_store_open(void **state) { return test_dir_open(state) || pst_store_open(test_dir, &test_store, &test_error); }

int test_store_close(void **state) {
  pst_store_close(test_store);
  test_store = NULL;
  return test_dir_close(state);
}
