# Penstock's build. Plain GNU make; `make help` lists the targets.
#
#   make [TARGET] [CC=gcc|clang] [SAN=address,undefined|thread] [DEBUG=1] [WERROR=1] [V=1]
#
# Each combination of compiler, sanitizers and debug has its own folder build/<config>/ with objects, library, program and
# tests; build/penstock points to the program built last. Sources are found, not listed: every .c under src/ is part of the
# library, but for src/cli/main.c, which is the program. Flags for one instruction set go by file suffix (ISA_FLAGS below).

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:
.SUFFIXES:
SILENT := $(findstring s,$(firstword -$(MAKEFLAGS)))
MAKEFLAGS += --no-builtin-rules --no-print-directory
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc) # a -j on the command line wins
endif

# ---- configuration -----------------------------------------------------------------------------------------------------

ifeq ($(origin CC),default)
CC := gcc
endif
PREFIX ?= /usr/local
DESTDIR ?=
PENSTOCK_HOME ?= $(CURDIR)/build/home
PENSTOCK_TEST_DATA ?= $(CURDIR)/../shared/data
FUZZ_SECONDS ?= 60

ifeq ($(CC),clang)
override CC := $(if $(shell command -v clang-14),clang-14,clang)
endif
IS_CLANG := $(findstring clang,$(notdir $(CC)))
COMPILER := $(if $(IS_CLANG),clang,$(notdir $(CC)))
comma := ,
CONFIG := $(COMPILER)$(if $(FUZZ),-fuzz)$(if $(SAN),-$(subst $(comma),-,$(SAN)))$(if $(DEBUG),-debug)
B := build/$(CONFIG)
# The machine that is built for. Any other than the one that builds has its libraries in a folder (tools/deps.sh arm).
MACHINE := $(shell uname -m)
CROSS := $(if $(filter-out aarch64,$(MACHINE)),$(filter aarch64-linux-gnu-,$(patsubst %gcc,%,$(notdir $(CC)))))
DEPS := build/deps$(if $(CROSS),-arm64)
ifneq ($(CROSS),)
MACHINE := aarch64
SYSROOT := --sysroot=$(DEPS)/root
endif
AR := $(CROSS)ar

Q := $(if $(V),,@)
# What is shown instead of a command: nothing under make -s.
SHOW := $(if $(V)$(SILENT),,yes)

# Targets that need no dependencies, and so may run on a bare machine.
BARE_GOALS := help clean distclean check-layers deps lock-python test-isolated test-arm
ifneq ($(filter-out $(BARE_GOALS),$(or $(MAKECMDGOALS),all)),)
include $(DEPS)/config.mk
endif

# ---- sources -----------------------------------------------------------------------------------------------------------

MAIN := $(wildcard src/cli/main.c)
ISA_FOLDERS := x86 arm
NATIVE_FOLDER := $(if $(filter x86_64 amd64,$(MACHINE)),x86,$(if $(filter aarch64 arm64,$(MACHINE)),arm))
FOREIGN := $(foreach d,$(filter-out $(NATIVE_FOLDER),$(ISA_FOLDERS)),src/kernels/$(d)/%)
SOURCES := $(filter-out $(MAIN) $(FOREIGN),$(sort $(shell find src -name '*.c' 2>/dev/null)))
HEADERS := $(sort $(shell find include src tests -name '*.h' 2>/dev/null))
# Everything in assets/ and web/, and whatever stands in src/ without being C: schemas, SQL, pages, lists.
ASSETS := $(sort $(shell LC_ALL=C find assets web src -type f \
  ! -name '*.[chS]' ! -name '*.cu' ! -name '*.inc' ! -name '*.md' ! -name '*.py' ! -name '.*' 2>/dev/null))

TEST_SOURCES := $(sort $(wildcard tests/unit/test_*.c tests/kernels/test_*.c tests/golden/test_*.c tests/flow/test_*.c tests/faults/test_*.c))
TEST_SUPPORT := $(sort $(wildcard tests/support/*.c))
FUZZ_SOURCES := $(sort $(wildcard tests/fuzz/fuzz_*.c))
BENCH_SOURCES := $(sort $(wildcard bench/bench_*.c))

OBJECTS := $(SOURCES:%.c=$(B)/%.o) $(B)/gen/assets.o $(B)/gen/asset_table.o
LIBRARY := $(B)/libpenstock.a
PROGRAM := $(B)/penstock
TESTS := $(TEST_SOURCES:tests/%.c=$(B)/tests/%)
FUZZERS := $(FUZZ_SOURCES:tests/%.c=$(B)/tests/%)
BENCHES := $(BENCH_SOURCES:bench/%.c=$(B)/bench/%)

# ---- flags -------------------------------------------------------------------------------------------------------------

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith $(if $(WERROR),-Werror)
# Under a sanitizer what its reports name, functions and lines, is enough: with all of -g the tests take 7 GB.
BASE_FLAGS := -std=c11 -D_GNU_SOURCE $(if $(SAN),-g1,-g) -pthread -fPIC -ffp-contract=off -fno-omit-frame-pointer -Iinclude -Isrc$(if $(SYSROOT), $(SYSROOT))
SAN_LIST := $(if $(FUZZ),fuzzer-no-link$(comma))$(SAN)
SAN_FLAGS := $(if $(SAN)$(FUZZ),-fsanitize=$(SAN_LIST:%,=%) -fno-sanitize-recover=all)
# Sanitizers and _FORTIFY_SOURCE watch the same calls; only one of them at a time.
HARDENING := $(if $(SAN)$(FUZZ)$(DEBUG),,-fstack-protector-strong -D_FORTIFY_SOURCE=2)
OPTIMIZE := $(if $(DEBUG),-Og,-O2)
# Under a sanitizer the unrolled tiles take a compiler minutes at -O3.
OPTIMIZE_KERNELS := $(if $(DEBUG),-Og,$(if $(SAN)$(FUZZ),-O1,-O3))
ALL_CFLAGS = $(BASE_FLAGS) $(OPTIMIZE) $(HARDENING) $(SAN_FLAGS) $(WARNINGS) $(CFLAGS)
ALL_LDFLAGS = -pthread $(SAN_FLAGS) -Wl,--as-needed $(LDFLAGS)$(if $(SYSROOT), $(SYSROOT))
ALL_LIBS = $(DEPS_LIBS) -lm

AVX2_FLAGS := -mavx2 -mfma -mf16c -mbmi2
AVX512_FLAGS := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mfma -mf16c -mbmi2
ISA_FLAGS = $(strip $(if $(filter %_avx2,$(basename $1)),$(AVX2_FLAGS)) $(if $(filter %_avxvnni,$(basename $1)),$(AVX2_FLAGS) -mavxvnni) \
  $(if $(filter %_avx512,$(basename $1)),$(AVX512_FLAGS)) $(if $(filter %_avx512bf16,$(basename $1)),$(AVX512_FLAGS) -mavx512bf16) \
  $(if $(filter %_dotprod,$(basename $1)),-march=armv8.2-a+dotprod) $(if $(filter %_i8mm,$(basename $1)),-march=armv8.2-a+dotprod+i8mm) \
  $(if $(IS_CLANG),,$(if $(filter src/kernels/arm/%,$1),-fno-schedule-insns)))
# All flags of one source file.
FLAGS_OF = $(ALL_CFLAGS) $(DEPS_CFLAGS) $(if $(filter src/kernels/% src/classifier/% src/tune/%,$1),$(OPTIMIZE_KERNELS)) $(call ISA_FLAGS,$1)
TEST_FLAGS = $(ALL_CFLAGS) $(DEPS_CFLAGS) -Itests

# ---- build -------------------------------------------------------------------------------------------------------------

.PHONY: all lib unit FORCE
all: $(LIBRARY) $(if $(MAIN),$(PROGRAM)) compile_commands.json
	$(if $(MAIN),@ln -sfn $(CONFIG)/penstock build/penstock)
lib: $(LIBRARY)
unit: $(TESTS)

build/deps/config.mk: tools/deps.sh tools/deps.lock
	@tools/deps.sh system build
	@tools/deps.sh sources
build/deps-arm64/config.mk: tools/deps.sh tools/deps.lock
	@tools/deps.sh system build arm
	@tools/deps.sh arm
build/deps/stamp-%: tools/deps.sh
	@tools/deps.sh system $*
	@mkdir -p $(@D) && touch $@
ifneq ($(IS_CLANG),)
COMPILER_STAMP := build/deps/stamp-clang
endif

# Rewritten only when it changes: other flags or another list of files rebuild what depends on them.
define write_if_changed
	@mkdir -p $(@D)
	@printf '%s\n' $1 | cmp -s - $@ || printf '%s\n' $1 >$@
endef
$(B)/flags: FORCE | $(COMPILER_STAMP)
	$(call write_if_changed,'$(CC) $(ALL_CFLAGS) $(DEPS_CFLAGS) $(ALL_LDFLAGS) $(ALL_LIBS)')
$(B)/sources: FORCE
	$(call write_if_changed,$(SOURCES))
$(B)/assets: FORCE
	$(call write_if_changed,$(or $(ASSETS),''))

$(B)/src/%.o: src/%.c $(B)/flags
	@mkdir -p $(@D)
	$(if $(SHOW),@echo '  CC    $<')
	$(Q)$(CC) $(call FLAGS_OF,$<) -MMD -MP -c $< -o $@

$(B)/gen/assets.S: $(B)/assets $(ASSETS) tools/embed.sh
	@mkdir -p $(@D)
	@tools/embed.sh $(@D) $(ASSETS)
$(B)/gen/asset_table.c: $(B)/gen/assets.S ;
$(B)/gen/assets.o: $(B)/gen/assets.S $(B)/flags
	$(Q)$(CC) -c $< -o $@
$(B)/gen/asset_table.o: $(B)/gen/asset_table.c $(B)/flags
	$(Q)$(CC) $(ALL_CFLAGS) -c $< -o $@

$(LIBRARY): $(OBJECTS) $(B)/sources
	$(if $(SHOW),@echo '  AR    $@')
	@rm -f $@
	$(Q)$(AR) rcs $@ $(OBJECTS)

$(PROGRAM): $(MAIN:%.c=$(B)/%.o) $(LIBRARY)
	$(if $(SHOW),@echo '  LD    $@')
	$(Q)$(CC) $(ALL_LDFLAGS) $^ $(ALL_LIBS) -o $@

$(B)/tests/%.o: tests/%.c $(B)/flags build/deps/stamp-test
	@mkdir -p $(@D)
	$(if $(SHOW),@echo '  CC    $<')
	$(Q)$(CC) $(TEST_FLAGS) -MMD -MP -c $< -o $@
$(TESTS): $(B)/tests/%: $(B)/tests/%.o $(TEST_SUPPORT:%.c=$(B)/%.o) $(LIBRARY)
	$(if $(SHOW),@echo '  LD    $@')
	$(Q)$(CC) $(ALL_LDFLAGS) $^ -lcmocka $(ALL_LIBS) -o $@
$(FUZZERS): $(B)/tests/%: $(B)/tests/%.o $(LIBRARY)
	$(if $(SHOW),@echo '  LD    $@')
	$(Q)$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer $^ $(ALL_LIBS) -o $@

$(B)/bench/%.o: bench/%.c $(B)/flags
	@mkdir -p $(@D)
	$(if $(SHOW),@echo '  CC    $<')
	$(Q)$(CC) $(TEST_FLAGS) -MMD -MP -c $< -o $@
$(BENCHES): $(B)/bench/%: $(B)/bench/%.o $(LIBRARY)
	$(if $(SHOW),@echo '  LD    $@')
	$(Q)$(CC) $(ALL_LDFLAGS) $(filter %.o,$^) $(LIBRARY) $(ALL_LIBS) -o $@

# They share the tests' way to the logits, and their adapters.
$(B)/bench/bench_logits: $(B)/tests/support/forced.o
$(B)/bench/bench_adapters: $(B)/tests/support/random_adapter.o

-include $(patsubst %.c,$(B)/%.d,$(SOURCES) $(MAIN) $(TEST_SOURCES) $(TEST_SUPPORT) $(FUZZ_SOURCES) $(BENCH_SOURCES))

# Written by make itself: the whole is longer than a shell's argument may be.
comma := ,
compile_commands.json: $(B)/flags $(B)/sources
	$(file >$@,[)
	$(foreach f,$(SOURCES) $(MAIN),$(file >>$@,$(if $(filter-out $(firstword $(SOURCES)),$f),$(comma)){"directory": "$(CURDIR)"$(comma) "file": "$f"$(comma) "command": "$(strip $(CC) $(call FLAGS_OF,$f) -c $f -o $(B)/$(f:.c=.o))"}))
	$(file >>$@,])
	@:

# ---- tests -------------------------------------------------------------------------------------------------------------

# C programs and Python files under tests/; what is meant only for test-full looks at PENSTOCK_TEST_FULL (C) or carries the
# mark `full` (pytest). tests/README.md has the table.
.PHONY: test test-full test-unit models venv deps
PYTEST_FOLDERS := $(sort $(dir $(wildcard tests/flow/test_*.py tests/golden/test_*.py tests/faults/test_*.py tests/kernels/test_*.py)))
TEST_JOBS ?= $(shell nproc)
TEST_TIMEOUT ?= 900
VENV_PYTHON := build/venv/bin/python
MODEL_PATHS := build/models.env
export PENSTOCK_HOME PENSTOCK_TEST_DATA
export PENSTOCK_BIN := $(CURDIR)/$(PROGRAM)
export PENSTOCK_PACKED ?= $(CURDIR)/build/packed
export ASAN_OPTIONS ?= detect_leaks=1:abort_on_error=0:detect_stack_use_after_return=1:allocator_may_return_null=1
export UBSAN_OPTIONS ?= print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS ?= halt_on_error=1:second_deadlock_stack=1

RUN_TESTS = tools/run_tests --jobs $(TEST_JOBS) --timeout $(TEST_TIMEOUT) --log $(B)/test-log --env $(MODEL_PATHS)
WITH_PYTEST = $(if $(PYTEST_FOLDERS),--python $(VENV_PYTHON) $(PYTEST_FOLDERS:%=--pytest %))
test: all $(TESTS) $(VENV_PYTHON) models
	@$(RUN_TESTS) $(WITH_PYTEST) --pytest-argument=-m --pytest-argument='not full' $(TESTS)
test-full: export PENSTOCK_TEST_FULL := 1
test-full: TEST_TIMEOUT := 7200
test-full: all $(TESTS) $(VENV_PYTHON) models
	@$(RUN_TESTS) $(WITH_PYTEST) $(TESTS)
# The C programs alone, with the models if they are there: what the sanitizers run.
test-unit: $(TESTS) $(if $(MAIN),$(PROGRAM))
	@$(RUN_TESTS) $(TESTS)

# The kernels and the engine on ARM: cross-compiled, run under qemu-user as a CPU with NEON only, one with dotprod, one with everything.
.PHONY: test-arm test-emulated
EMULATED_TESTS := $(filter $(B)/tests/kernels/% $(B)/tests/golden/test_logits $(B)/tests/golden/test_architectures,$(TESTS))
EMULATE = PENSTOCK_TEST_ISA=$2 $(RUN_TESTS) --under 'qemu-aarch64 -L $(DEPS)/root -cpu $1' $(EMULATED_TESTS)
test-arm:
	@$(MAKE) CC=aarch64-linux-gnu-gcc test-emulated
test-emulated: $(EMULATED_TESTS) $(PROGRAM)
	@$(call EMULATE,cortex-a53,neon)
	@$(call EMULATE,cortex-a76,dotprod)
	@$(call EMULATE,max,i8mm)

venv: $(VENV_PYTHON)
$(VENV_PYTHON): tests/requirements.lock tools/deps.sh
	@tools/deps.sh venv
	@touch $@

# Pulls the small models and writes where they lie. PENSTOCK_TEST_NO_MODELS=1: does without; their tests are skipped.
models: all
	@tools/pull_models $(if $(MAIN),$(PROGRAM),none) $(MODEL_PATHS) smollm2-135m=PENSTOCK_TEST_SMOLLM2 gemma3-270m=PENSTOCK_TEST_GEMMA3 \
		all-minilm-l6-v2=PENSTOCK_TEST_MINILM

deps:
	@tools/deps.sh system build test check
	@tools/deps.sh sources
	@tools/deps.sh venv

# ---- fuzzing -----------------------------------------------------------------------------------------------------------

# Each tests/fuzz/fuzz_*.c for FUZZ_SECONDS under clang's libFuzzer, ASan and UBSan. tests/fuzz/corpus/<name>/ are its seeds.
.PHONY: fuzz fuzz-run
fuzz:
	@$(MAKE) CC=clang FUZZ=1 SAN=address,undefined fuzz-run
fuzz-run: $(FUZZERS)
	@tools/run_fuzz $(FUZZ_SECONDS) $(B)/fuzz $(FUZZERS)

# ---- checks ------------------------------------------------------------------------------------------------------------

CHECKS := layers symbols headers format sizes static
C_FILES := $(sort $(shell find include src tests bench -name '*.[ch]' 2>/dev/null))
SRC_FILES := $(sort $(shell find include src -name '*.[ch]' 2>/dev/null))
OWN_HEADERS := $(filter-out $(FOREIGN:%=%.h),$(filter-out $(FOREIGN),$(filter include/% src/%,$(HEADERS))))
HEADER_MARKS := $(OWN_HEADERS:%=$(B)/check/%.ok)
TIDY_MARKS := $(patsubst %.c,$(B)/check/%.tidy,$(SOURCES) $(MAIN))
.PHONY: check $(CHECKS:%=check-%) format
check: build/deps/stamp-check
	@tools/check '$(MAKE)' $(CHECKS)
check-layers:
	@tools/check_layers
check-symbols: $(LIBRARY) $(MAIN:%.c=$(B)/%.o)
	@tools/check_symbols $(B)/src
check-headers: $(HEADER_MARKS)
	@echo 'headers: $(words $(HEADER_MARKS)) compile alone'
check-format: build/deps/stamp-check
	@clang-format-14 --dry-run -Werror $(C_FILES) 2>&1 | grep -E 'error:' | cut -d: -f1 | uniq -c | \
	  awk '{ print "format: " $$2 ": " $$1 " places" } END { if (NR) print "format: run: make format FILES=..."; exit NR > 0 }'
	@echo 'format: $(words $(C_FILES)) files as clang-format-14 writes them'
check-sizes: build/deps/stamp-check
	@tools/check_sizes $(SRC_FILES)
check-static: check-cppcheck $(TIDY_MARKS)
	@echo 'static: $(words $(TIDY_MARKS)) files without a finding'
.PHONY: check-cppcheck
check-cppcheck: build/deps/stamp-check
	@mkdir -p $(B)/check/cppcheck
	@cppcheck --quiet --std=c11 --library=posix --enable=warning,portability,performance --suppressions-list=tools/cppcheck.txt \
	  --inline-suppr --cppcheck-build-dir=$(B)/check/cppcheck --error-exitcode=1 -j $(shell nproc) -D__x86_64__ -Iinclude -Isrc src

# A header stands alone: C with all warnings, and the public ones as C++ too.
$(B)/check/%.h.ok: %.h $(HEADERS) $(B)/flags build/deps/stamp-check
	@mkdir -p $(@D)
	@printf '#include "%s"\nextern int not_empty;\n' '$(patsubst include/%,%,$(patsubst src/%,%,$<))' >$(@:.ok=.c)
	@$(CC) $(filter-out -Isrc,$(ALL_CFLAGS)) $(if $(filter src/%,$<),-Isrc) $(DEPS_CFLAGS) $(call ISA_FLAGS,$<) -Werror -fsyntax-only $(@:.ok=.c)
	$(if $(filter include/%,$<),@clang-14 -x c++ -std=c++17 -Iinclude -Wall -Wextra -Werror -fsyntax-only $(@:.ok=.c))
	@touch $@
# How many states of a function its analyzer goes through; it stops at 225,000 by itself, which takes three times as long.
TIDY_NODES ?= 30000
# The object is the prerequisite because it knows the file's headers.
$(B)/check/%.tidy: $(B)/%.o .clang-tidy build/deps/stamp-check
	@mkdir -p $(@D)
	@clang-tidy-14 --quiet $*.c -- -Xclang -analyzer-config -Xclang max-nodes=$(TIDY_NODES) $(filter-out -Werror,$(call FLAGS_OF,$*.c)) >$@.log 2>$@.err || { cat $@.log; grep -E 'error:' $@.err; false; }
	@touch $@

# make format: every C file; make format FILES='src/net/*.c': these.
format: build/deps/stamp-check
	clang-format-14 -i $(if $(FILES),$(FILES),$(C_FILES))

# ---- the rest ----------------------------------------------------------------------------------------------------------

.PHONY: bench benches demo install uninstall lock-python test-isolated clean distclean help
benches: $(BENCHES)
bench: all $(BENCHES)
	@tools/run_bench $(BENCHES)

demo: all
	@tools/demo $(PROGRAM)

install: all
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/share/doc/penstock' '$(DESTDIR)$(PREFIX)/share/penstock'
	install -m 755 $(PROGRAM) '$(DESTDIR)$(PREFIX)/bin/penstock'
	install -m 644 LICENSE $(wildcard README.md) '$(DESTDIR)$(PREFIX)/share/doc/penstock/'
	$(if $(wildcard examples),cp -R examples '$(DESTDIR)$(PREFIX)/share/penstock/')
	for l in build/deps/licences/*; do install -m 644 "$$l" "$(DESTDIR)$(PREFIX)/share/doc/penstock/LICENSE.$$(basename "$$l")"; done
uninstall:
	rm -rf '$(DESTDIR)$(PREFIX)/bin/penstock' '$(DESTDIR)$(PREFIX)/share/doc/penstock' '$(DESTDIR)$(PREFIX)/share/penstock'

lock-python:
	python3 tools/lock_python.py tests/requirements.txt tests/requirements.lock

# A bare Debian 12 in a folder, a clean clone in it, `make all` and the unit tests there. Root only; takes minutes.
test-isolated:
	tools/test_isolated

clean:
	rm -rf $(filter-out build/deps build/deps-arm64 build/venv build/home,$(wildcard build/*)) compile_commands.json
distclean:
	rm -rf build compile_commands.json

help:
	@sed -n 's/^#: //p' $(firstword $(MAKEFILE_LIST))

#: make all            library, program (build/penstock), compile_commands.json; installs what is missing first
#: make demo           two small models pulled, the example workload optimized, the plan explained and served
#: make test           every test but the longest (tests/README.md); closes with `N passed, N failed, N skipped`
#: make test-full      every test
#: make test-unit      the C test programs alone: with SAN=address,undefined or SAN=thread, the sanitizers' run
#: make test-arm       kernels and engine for ARM, cross-compiled, under qemu-user (tests/README.md)
#: make check          layers, symbols, headers, format, sizes, static analysis (each also alone: make check-format ...)
#: make format         rewrites C files as `check` wants them; FILES='...' for some
#: make fuzz           each fuzz target for FUZZ_SECONDS=60
#: make bench          benchmarks
#: make models         pulls the two small models into PENSTOCK_HOME (build/home)
#: make deps           all dependencies, those of tests and checks too
#: make install        to DESTDIR/PREFIX (/usr/local); uninstall
#: make test-isolated  proves a fresh machine: bare Debian 12 by debootstrap (root)
#: make lock-python    resolves tests/requirements.txt anew into tests/requirements.lock
#: make clean          what was built; distclean: dependencies and models too
#:
#: Settings: CC=gcc|clang  SAN=address,undefined|thread  DEBUG=1  WERROR=1  V=1 (commands shown)  CFLAGS=  LDFLAGS=
#:           PENSTOCK_HOME=  PENSTOCK_TEST_DATA=  PENSTOCK_NO_INSTALL=1 (a missing package is an error)
