/* Files embedded in the program: schemas, SQL, pages, notices.
 *
 * The build turns every file under assets/ and web/, and every non-C file under src/, into read-only data and one table;
 * this file only looks names up. A linear search: there are a few dozen files, looked up once each. */
#include "base/asset.h"

#include <penstock/base.h>
#include <string.h>

bool pst_asset_find(const char *name, pst_str *ret_data) {
  for (const pst_asset_entry *e = pst_asset_table; e->name != NULL; e++) {
    if (strcmp(e->name, name) == 0) {
      *ret_data = (pst_str){e->data, (size_t)(e->end - e->data)};
      return true;
    }
  }
  return false;
}

const char *pst_asset_name(size_t index) {
  for (size_t i = 0; pst_asset_table[i].name != NULL; i++) {
    if (i == index) return pst_asset_table[i].name;
  }
  return NULL;
}
