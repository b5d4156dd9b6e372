/* A directory of its own for a test. */
#ifndef PST_TESTS_SUPPORT_TEMP_H
#define PST_TESTS_SUPPORT_TEMP_H

#include <stddef.h>

/* Makes a new empty directory under $TMPDIR or /tmp; aborts the test program if it cannot. Free with test_temp_remove. */
char *test_temp_dir(void);
/* Removes the directory with all that is in it, and frees the name. */
void test_temp_remove(char *dir);
/* dir/name in a static buffer of this thread, good until the eighth next call. */
const char *test_temp_path(const char *dir, const char *name);
/* Writes a whole file; aborts on failure. */
void test_temp_write(const char *path, const void *data, size_t n);

/* A directory of its own for a test, or for a group of them, as its setup and teardown. */
extern char *test_dir;
int test_dir_open(void **state);
int test_dir_close(void **state);

#endif
