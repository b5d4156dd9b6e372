/* Statements of the template interpreter: text, assignment, branches, loops, macros and blocks.
 *
 * Owns scopes: a loop's body, a macro and a block each see the names around them and keep their own; a branch has none. A
 * macro holds the scope it was defined in, so scopes live as long as the rendering. */
#include "engine/template_types.h"

#include <string.h>

typedef enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE, FLOW_FAILED } flow;

static flow run_all(tpl_ctx *c, tpl_scope *scope, const tpl_nodes *nodes);

static tpl_scope *scope_new(tpl_ctx *c, tpl_scope *parent) {
  tpl_scope *scope = pst_engine_tpl_alloc(c, sizeof *scope);
  if (scope) *scope = (tpl_scope){.parent = parent};
  return scope;
}

/* Everything up to the root may be seen again once a macro holds `scope`. */
static void capture_scope(tpl_scope *scope) {
  for (; scope && !scope->captured; scope = scope->parent) scope->captured = true;
}

/* Runs a body with its text going into *out. */
static flow run_captured(tpl_ctx *c, tpl_scope *scope, const tpl_nodes *body, tpl_val *out) {
  tpl_builder b = pst_engine_tpl_builder(c), *outer = c->out;
  c->out = &b;
  flow f = run_all(c, scope, body);
  c->out = outer;
  return f == FLOW_FAILED || !pst_engine_tpl_build(&b, false, out) ? FLOW_FAILED : f;
}

/* ---- assignment ------------------------------------------------------------------------------------------------- */

static bool assign(tpl_ctx *c, tpl_scope *scope, const tpl_node *target, const tpl_val *value);

static bool unpack(tpl_ctx *c, tpl_scope *scope, const tpl_node *target, const tpl_val *value) {
  if (!pst_engine_tpl_is_iterable(value))
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "cannot unpack non-iterable %s object",
                               pst_engine_tpl_type_name(value));
  tpl_list *items;
  if (!pst_engine_tpl_collect(c, value, &items)) return false;
  if (items->n > target->list.n)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "too many values to unpack (expected %zu)", target->list.n);
  if (items->n < target->list.n)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "not enough values to unpack (expected %zu, got %zu)",
                               target->list.n, items->n);
  for (size_t i = 0; i < items->n; i++) {
    if (!assign(c, scope, target->list.items[i], &items->items[i])) return false;
  }
  return true;
}

static bool assign(tpl_ctx *c, tpl_scope *scope, const tpl_node *target, const tpl_val *value) {
  if (target->kind == TPL_N_NAME) return pst_engine_tpl_bind(c, scope, target->symbol, *value);
  if (target->kind == TPL_N_TUPLE) return unpack(c, scope, target, value);
  tpl_val ns;
  if (!pst_engine_tpl_lookup(c, scope, target->symbol, &ns)) return false;
  if (ns.kind != TPL_NAMESPACE)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "cannot assign attribute on non-namespace object");
  if (target->name.n && target->name.data[0] == '_')
    return pst_engine_tpl_fail(
        c, PST_E_BAD_INPUT,
        "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '%.*s'. "
        "Please rename the attribute.",
        (int)PST_MIN(target->name.n, 200u), target->name.data);
  return pst_engine_tpl_dict_set(c, ns.u.dict, target->value, *value);
}

static bool run_set(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  tpl_val value;
  return pst_engine_tpl_eval(c, scope, node->b, &value) && assign(c, scope, node->a, &value);
}

/* Filters of a block over its text; the innermost has no value of its own. */
static bool apply_filters(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, const tpl_val *text, tpl_val *out) {
  tpl_val value = *text;
  tpl_args args;
  if (node->a && !apply_filters(c, scope, node->a, text, &value)) return false;
  if (!pst_engine_tpl_eval_args(c, scope, node->call, &args)) return false;
  c->line = node->line;
  if (!node->filter)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "No filter named '%.*s' found.", (int)PST_MIN(node->name.n, 200u),
                               node->name.data);
  return node->filter->call(c, &value, &args, out);
}

static flow run_block(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  tpl_scope *inner = scope_new(c, scope);
  tpl_val text;
  if (!inner) return FLOW_FAILED;
  flow f = run_captured(c, inner, &node->list, &text);
  if (f != FLOW_ON) return f;
  const tpl_node *filter = node->kind == TPL_N_SETBLOCK ? node->b : node->a;
  if (filter && !apply_filters(c, inner, filter, &text, &text)) return FLOW_FAILED;
  bool ok = node->kind == TPL_N_SETBLOCK ? assign(c, scope, node->a, &text) : pst_engine_tpl_print(c->out, &text);
  return ok ? FLOW_ON : FLOW_FAILED;
}

static flow run_with(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  tpl_scope *inner = scope_new(c, scope);
  for (size_t i = 0; inner && i < node->list2.n; i++) {
    tpl_val value;
    if (!pst_engine_tpl_eval(c, scope, node->list3.items[i], &value) || !assign(c, inner, node->list2.items[i], &value))
      return FLOW_FAILED;
  }
  return inner ? run_all(c, inner, &node->list) : FLOW_FAILED;
}

static flow run_generation(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  tpl_scope *inner = scope_new(c, scope);
  size_t start = c->out->n;
  if (!inner) return FLOW_FAILED;
  flow f = run_all(c, inner, &node->list);
  if (f != FLOW_ON || c->out != c->final_out) return f;
  void *spans = c->generations;
  if (!pst_engine_tpl_charge(c, sizeof *c->generations) ||
      !pst_engine_tpl_grow(c->arena, &spans, &c->generations_capacity, c->n_generations + 1, sizeof *c->generations)) {
    pst_engine_tpl_fail(c, PST_E_NOMEM, "out of memory");
    return FLOW_FAILED;
  }
  c->generations = spans;
  c->generations[c->n_generations++] = (pst_engine_template_span){start, c->out->n, false};
  return FLOW_ON;
}

static flow run_if(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  for (;;) {
    tpl_val v;
    bool holds;
    if (!pst_engine_tpl_eval(c, scope, node->a, &v) || !pst_engine_tpl_truth(c, &v, &holds)) return FLOW_FAILED;
    if (holds) return run_all(c, scope, &node->list);
    if (node->list2.n != 1 || node->list2.items[0]->kind != TPL_N_IF) return run_all(c, scope, &node->list2);
    node = node->list2.items[0]; /* an elif, or an if alone in an else: the same */
  }
}

/* ---- loops ------------------------------------------------------------------------------------------------------ */

/* The next item that passes the loop's condition; MISSING at the end. */
static bool fetch(tpl_ctx *c, tpl_loop *loop, tpl_val *out) {
  *out = (tpl_val){.kind = TPL_MISSING};
  while (!loop->ended) {
    if (!pst_engine_tpl_next(c, &loop->walk, out)) return false;
    if (out->kind == TPL_MISSING)
      loop->ended = true;
    else if (!loop->node->c || loop->passed)
      return true;
    else {
      tpl_scope *scope = scope_new(c, loop->scope);
      tpl_val v;
      bool holds;
      if (!scope || !assign(c, scope, loop->node->a, out) || !pst_engine_tpl_eval(c, scope, loop->node->c, &v) ||
          !pst_engine_tpl_truth(c, &v, &holds))
        return false;
      if (holds) return true;
      out->kind = TPL_MISSING;
    }
  }
  return true;
}

static bool peek(tpl_ctx *c, tpl_loop *loop) {
  return loop->peeked.kind != TPL_MISSING || fetch(c, loop, &loop->peeked);
}

/* A loop over something without a length reads all of it to know. */
static bool find_length(tpl_ctx *c, tpl_loop *loop) {
  if (loop->length >= 0) return true;
  if (loop->sized) return pst_engine_tpl_length(c, &loop->walk.of, &loop->length);
  tpl_list *rest = pst_engine_tpl_list_new(c, 0);
  if (!rest) return false;
  for (tpl_val v;;) {
    if (!fetch(c, loop, &v)) return false;
    if (v.kind == TPL_MISSING) break;
    if (!pst_engine_tpl_list_push(c, rest, v)) return false;
  }
  tpl_val list = pst_engine_tpl_list(TPL_LIST, rest);
  if (!pst_engine_tpl_walk(c, &list, &loop->walk)) return false;
  loop->ended = false;
  loop->passed = true;
  loop->length = (int64_t)rest->n + loop->index0 + 1 + (loop->peeked.kind != TPL_MISSING);
  return true;
}

bool pst_engine_tpl_loop_attr(tpl_ctx *c, tpl_loop *loop, pst_str name, tpl_val *out) {
  *out = (tpl_val){.kind = TPL_MISSING};
  if (pst_str_is(name, "index"))
    *out = pst_engine_tpl_int(loop->index0 + 1);
  else if (pst_str_is(name, "index0"))
    *out = pst_engine_tpl_int(loop->index0);
  else if (pst_str_is(name, "first"))
    *out = pst_engine_tpl_bool(loop->index0 == 0);
  else if (pst_str_is(name, "depth"))
    *out = pst_engine_tpl_int(loop->depth0 + 1);
  else if (pst_str_is(name, "depth0"))
    *out = pst_engine_tpl_int(loop->depth0);
  else if (pst_str_is(name, "last")) {
    if (!peek(c, loop)) return false;
    *out = pst_engine_tpl_bool(loop->peeked.kind == TPL_MISSING);
  } else if (pst_str_is(name, "nextitem")) {
    if (!peek(c, loop)) return false;
    *out = loop->peeked;
    return out->kind != TPL_MISSING || pst_engine_tpl_undefined_hint(c, "there is no next item", out);
  } else if (pst_str_is(name, "previtem")) {
    *out = loop->before;
    return out->kind != TPL_MISSING || pst_engine_tpl_undefined_hint(c, "there is no previous item", out);
  } else if (pst_str_is(name, "length") || pst_str_is(name, "revindex") || pst_str_is(name, "revindex0")) {
    if (!find_length(c, loop)) return false;
    int64_t minus = name.n == 6 ? 0 : name.n == 8 ? loop->index0 : loop->index0 + 1;
    *out = pst_engine_tpl_int(loop->length - minus);
  }
  return true;
}

static bool next_item(tpl_ctx *c, tpl_loop *loop) {
  tpl_val v = loop->peeked;
  loop->peeked = (tpl_val){.kind = TPL_MISSING};
  if (v.kind == TPL_MISSING && !fetch(c, loop, &v)) return false;
  loop->before = loop->current;
  loop->current = v;
  loop->index0++;
  return true;
}

static flow run_loop(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, const tpl_val *iterable, int64_t depth0) {
  tpl_val none = {.kind = TPL_MISSING};
  tpl_loop *loop = pst_engine_tpl_alloc(c, sizeof *loop);
  tpl_scope *inner = scope_new(c, scope);
  if (!loop || !inner) return FLOW_FAILED;
  *loop = (tpl_loop){.node = node,
                     .scope = scope,
                     .peeked = none,
                     .current = none,
                     .before = none,
                     .changed = none,
                     .index0 = -1,
                     .depth0 = depth0,
                     .length = -1};
  if (!pst_engine_tpl_walk(c, iterable, &loop->walk)) return FLOW_FAILED;
  loop->sized = !node->c && iterable->kind != TPL_ITER;
  bool completed = false;
  while (next_item(c, loop) && loop->current.kind != TPL_MISSING) {
    if (inner->captured && !(inner = scope_new(c, scope))) return FLOW_FAILED;
    inner->n = 0;
    tpl_val self = {.kind = TPL_LOOP, .u.loop = loop};
    if (!assign(c, inner, node->a, &loop->current) || !pst_engine_tpl_bind(c, inner, node->symbol, self))
      return FLOW_FAILED;
    flow f = run_all(c, inner, &node->list);
    if (f == FLOW_FAILED) return f;
    if (f == FLOW_BREAK) break;
    completed = completed || f == FLOW_ON;
  }
  if (c->failed) return FLOW_FAILED;
  if (completed || !node->list2.n)
    return FLOW_ON; /* as in Jinja, else also follows a loop of nothing but break and continue */
  inner = scope_new(c, scope);
  return inner ? run_all(c, inner, &node->list2) : FLOW_FAILED;
}

static flow run_for(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  tpl_val iterable;
  if (!pst_engine_tpl_eval(c, scope, node->b, &iterable)) return FLOW_FAILED;
  c->line = node->line;
  return run_loop(c, scope, node, &iterable, 0);
}

bool pst_engine_tpl_call_loop(tpl_ctx *c, tpl_loop *loop, const tpl_args *args, tpl_val *out) {
  if (!loop->node->flag)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                               "The loop must have the 'recursive' marker to be called recursively.");
  if (args->n != 1 || args->n_named) return pst_engine_tpl_fail_unsupported(c, "loop() with other than one argument");
  if (!pst_engine_tpl_enter(c)) return false;
  tpl_builder b = pst_engine_tpl_builder(c), *outer = c->out;
  c->out = &b;
  flow f = run_loop(c, loop->scope, loop->node, &args->items[0], loop->depth0 + 1);
  c->out = outer;
  pst_engine_tpl_leave(c);
  return f != FLOW_FAILED && pst_engine_tpl_build(&b, false, out);
}

/* ---- macros ----------------------------------------------------------------------------------------------------- */

static bool bind_name(tpl_ctx *c, tpl_scope *scope, const char *name, tpl_val value) {
  return pst_engine_tpl_bind(c, scope, pst_engine_tpl_symbol(c->t, pst_str_from(name)), value);
}

/* Finds a keyword argument and marks it used. */
static const tpl_val *take_named(const tpl_args *args, bool *used, pst_str name) {
  for (size_t i = 0; i < args->n_named; i++) {
    if (used[i] || !pst_str_equal(args->names[i], name)) continue;
    used[i] = true;
    return &args->named[i];
  }
  return NULL;
}

static bool bind_parameters(tpl_ctx *c, tpl_scope *scope, const tpl_node *m, const tpl_args *args, bool *used) {
  tpl_val *values = pst_engine_tpl_alloc(c, m->list2.n * sizeof *values);
  if (!values) return false;
  for (size_t i = 0; i < m->list2.n; i++) {
    values[i] = (tpl_val){.kind = TPL_MISSING};
    const tpl_val *named = i < args->n ? NULL : take_named(args, used, m->list2.items[i]->name);
    if (i < args->n)
      values[i] = args->items[i];
    else if (named)
      values[i] = *named;
  }
  size_t first_default = m->list2.n - m->list3.n;
  for (size_t i = 0; i < m->list2.n; i++) {
    const tpl_node *parameter = m->list2.items[i];
    if (values[i].kind == TPL_MISSING && i >= first_default) {
      if (!pst_engine_tpl_eval(c, scope, m->list3.items[i - first_default], &values[i])) return false;
    } else if (values[i].kind == TPL_MISSING) {
      char hint[160];
      int n = snprintf(hint, sizeof hint, "parameter '%.*s' was not provided", (int)PST_MIN(parameter->name.n, 100u),
                       parameter->name.data);
      char *copy = pst_engine_tpl_alloc(c, (size_t)n + 1);
      if (!copy) return false;
      memcpy(copy, hint, (size_t)n + 1);
      if (!pst_engine_tpl_undefined_hint(c, copy, &values[i])) return false;
    }
    if (!pst_engine_tpl_bind(c, scope, parameter->symbol, values[i])) return false;
  }
  return true;
}

/* caller, kwargs and varargs, as far as the body names them; what is left over is an error. */
static bool bind_specials(tpl_ctx *c, tpl_scope *scope, const tpl_node *m, const tpl_args *args, bool *used) {
  if (m->flag) {
    const tpl_val *caller = take_named(args, used, PST_STR("caller"));
    tpl_val v;
    if (caller && caller->kind != TPL_NONE)
      v = *caller;
    else if (!pst_engine_tpl_undefined_hint(c, "No caller defined", &v))
      return false;
    if (!bind_name(c, scope, "caller", v)) return false;
  }
  tpl_dict *rest = m->catches_kwargs ? pst_engine_tpl_dict_new(c) : NULL;
  if (m->catches_kwargs && !rest) return false;
  for (size_t i = 0; i < args->n_named; i++) {
    if (used[i]) continue;
    pst_str name = args->names[i];
    if (!rest && pst_str_is(name, "caller"))
      return pst_engine_tpl_fail(
          c, PST_E_BAD_INPUT,
          "macro '%.*s' was invoked with two values for the special caller argument. This is most likely a bug.",
          (int)PST_MIN(m->name.n, 100u), m->name.data);
    if (!rest)
      return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "macro '%.*s' takes no keyword argument '%.*s'",
                                 (int)PST_MIN(m->name.n, 100u), m->name.data, (int)PST_MIN(name.n, 100u), name.data);
    tpl_val key = pst_engine_tpl_string(pst_engine_tpl_str_view(c, name, false));
    if (key.kind != TPL_STR || !pst_engine_tpl_dict_set(c, rest, key, args->named[i])) return false;
  }
  if (rest && !bind_name(c, scope, "kwargs", pst_engine_tpl_dict(rest))) return false;
  if (!m->catches_varargs) {
    return args->n <= m->list2.n ||
           pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "macro '%.*s' takes not more than %zu argument(s)",
                               (int)PST_MIN(m->name.n, 100u), m->name.data, m->list2.n);
  }
  tpl_list *more = pst_engine_tpl_list_new(c, 0);
  for (size_t i = m->list2.n; more && i < args->n; i++) {
    if (!pst_engine_tpl_list_push(c, more, args->items[i])) return false;
  }
  return more && bind_name(c, scope, "varargs", pst_engine_tpl_list(TPL_TUPLE, more));
}

bool pst_engine_tpl_call_macro(tpl_ctx *c, const tpl_macro *macro, const tpl_args *args, tpl_val *out) {
  const tpl_node *m = macro->node;
  tpl_scope *scope = scope_new(c, macro->scope);
  bool *used = pst_engine_tpl_alloc(c, args->n_named);
  if (!scope || !used || !pst_engine_tpl_enter(c)) return false;
  memset(used, 0, args->n_named);
  int line = c->line;
  bool ok = bind_parameters(c, scope, m, args, used) && bind_specials(c, scope, m, args, used) &&
            run_captured(c, scope, &m->list, out) != FLOW_FAILED;
  if (ok) c->line = line;
  pst_engine_tpl_leave(c);
  return ok;
}

static bool macro_value(tpl_ctx *c, tpl_scope *scope, const tpl_node *node, tpl_val *out) {
  tpl_macro *macro = pst_engine_tpl_alloc(c, sizeof *macro);
  if (!macro) return false;
  *macro = (tpl_macro){node, scope};
  capture_scope(scope);
  *out = (tpl_val){.kind = TPL_MACRO, .u.macro = macro};
  return true;
}

static bool run_macro(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  tpl_val v;
  return macro_value(c, scope, node, &v) && pst_engine_tpl_bind(c, scope, node->symbol, v);
}

static bool run_call_block(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  tpl_val f, caller, out;
  tpl_args args;
  if (!macro_value(c, scope, node->b, &caller) || !pst_engine_tpl_eval(c, scope, node->a->a, &f) ||
      !pst_engine_tpl_eval_args(c, scope, node->a->call, &args))
    return false;
  tpl_val *named = pst_engine_tpl_alloc(c, (args.n_named + 1) * sizeof *named);
  pst_str *names = pst_engine_tpl_alloc(c, (args.n_named + 1) * sizeof *names);
  if (!named || !names) return false;
  if (args.n_named) {
    memcpy(named, args.named, args.n_named * sizeof *named);
    memcpy(names, args.names, args.n_named * sizeof *names);
  }
  named[args.n_named] = caller;
  names[args.n_named++] = PST_STR("caller");
  args.named = named;
  args.names = names;
  c->line = node->line;
  return pst_engine_tpl_call_value(c, &f, &args, &out) && pst_engine_tpl_print(c->out, &out);
}

/* ---- all statements --------------------------------------------------------------------------------------------- */

static bool run_print(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  tpl_val v;
  return pst_engine_tpl_eval(c, scope, node->a, &v) && pst_engine_tpl_print(c->out, &v);
}

static flow run_node(tpl_ctx *c, tpl_scope *scope, const tpl_node *node) {
  bool ok;
  switch (node->kind) {
  case TPL_N_DATA: ok = pst_engine_tpl_put_str(c->out, node->value.u.s); break;
  case TPL_N_PRINT: ok = run_print(c, scope, node); break;
  case TPL_N_SET: ok = run_set(c, scope, node); break;
  case TPL_N_MACRO: ok = run_macro(c, scope, node); break;
  case TPL_N_CALLBLOCK: ok = run_call_block(c, scope, node); break;
  case TPL_N_IF: return run_if(c, scope, node);
  case TPL_N_FOR: return run_for(c, scope, node);
  case TPL_N_SETBLOCK:
  case TPL_N_FILTERBLOCK: return run_block(c, scope, node);
  case TPL_N_WITH: return run_with(c, scope, node);
  case TPL_N_GENERATION: return run_generation(c, scope, node);
  case TPL_N_BREAK: return FLOW_BREAK;
  case TPL_N_CONTINUE: return FLOW_CONTINUE;
  default: ok = pst_engine_tpl_fail(c, PST_E_INTERNAL, "an expression where a statement belongs"); break;
  }
  return ok ? FLOW_ON : FLOW_FAILED;
}

static flow run_all(tpl_ctx *c, tpl_scope *scope, const tpl_nodes *nodes) {
  if (!pst_engine_tpl_enter(c)) return FLOW_FAILED;
  flow f = FLOW_ON;
  for (size_t i = 0; f == FLOW_ON && i < nodes->n; i++) {
    c->line = nodes->items[i]->line;
    f = pst_engine_tpl_charge(c, 0) ? run_node(c, scope, nodes->items[i]) : FLOW_FAILED;
  }
  pst_engine_tpl_leave(c);
  return f;
}

bool pst_engine_tpl_run(tpl_ctx *c, tpl_scope *root) { return run_all(c, root, &c->t->body) != FLOW_FAILED; }
