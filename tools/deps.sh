#!/bin/sh
# Brings in what the build, the tests and the checks need. Called by make; safe to run again; does nothing when nothing is missing.
#
#   tools/deps.sh system GROUP...   Debian packages of the groups (build, clang, test, check, isolated, arm)
#   tools/deps.sh sources           yyjson and llhttp: from the system, else from pinned sources, into build/deps
#   tools/deps.sh arm               all libraries for arm64, for cross-compiling, into build/deps-arm64
#   tools/deps.sh venv              Python environment for the tests, in build/venv
#
# PENSTOCK_NO_INSTALL=1 makes a missing package an error instead of an installation.
set -eu
cd "$(dirname "$0")/.."
deps=build/deps

packages_build="gcc libc6-dev make pkg-config libevent-dev libssl-dev libcurl4-openssl-dev libsqlite3-dev libzip-dev libpcre2-dev libutf8proc-dev
  libopenblas-dev python3 python3-venv python3-pip ca-certificates"
packages_clang="clang-14 libclang-rt-14-dev llvm-14"
packages_test="libcmocka-dev"
packages_check="clang-14 libclang-rt-14-dev clang-format-14 clang-tidy-14 cppcheck universal-ctags binutils"
packages_isolated="debootstrap git"
packages_arm="gcc-aarch64-linux-gnu qemu-user"

say() { printf '%s\n' "deps: $*" >&2; }
die() { say "$*"; exit 1; }

have_package() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# A line that shows life on a terminal while a silent command runs; its output is shown when it fails.
run_quietly() {
  what=$1
  shift
  log=$(mktemp)
  say "$what ..."
  if [ -t 2 ]; then
    "$@" >"$log" 2>&1 &
    pid=$!
    start=$(date +%s)
    while kill -0 "$pid" 2>/dev/null; do
      printf '\rdeps: %s ... %ss ' "$what" "$(($(date +%s) - start))" >&2
      sleep 1
    done
    printf '\r\033[K' >&2
    wait "$pid" && rc=0 || rc=$?
  else
    "$@" >"$log" 2>&1 && rc=0 || rc=$?
  fi
  if [ "$rc" -ne 0 ]; then
    tail -n 40 "$log" >&2
    rm -f "$log"
    return "$rc"
  fi
  rm -f "$log"
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

install_system() {
  missing=
  for group in "$@"; do
    eval "names=\${packages_$group:-}"
    [ -n "$names" ] || die "no package group named $group"
    for name in $names; do
      have_package "$name" || case " $missing " in *" $name "*) ;; *) missing="$missing $name" ;; esac
    done
  done
  [ -n "$missing" ] || return 0
  command -v apt-get >/dev/null || die "missing:$missing (this system has no apt-get; install their equivalents, then set PENSTOCK_SYSTEM=other)"
  [ -z "${PENSTOCK_NO_INSTALL:-}" ] || die "missing:$missing (PENSTOCK_NO_INSTALL is set; install them with apt-get install$missing)"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "missing:$missing (neither root nor sudo here; as root run: apt-get install$missing)"
    sudo -n true 2>/dev/null || [ -t 0 ] || die "missing:$missing (sudo asks for a password and there is no terminal; as root run: apt-get install$missing)"
  fi
  run_quietly "reading package lists" as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq update ||
    say "apt-get update failed; trying with the lists that are there"
  # shellcheck disable=SC2086
  run_quietly "installing$missing" as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq -y --no-install-recommends install $missing ||
    die "could not install:$missing"
}

# The oldest Python that pip packages here support; both a distribution's and a version manager's will do.
find_python() {
  for python in ${PYTHON:-} python3 /usr/bin/python3; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
      printf '%s\n' "$python"
      return
    fi
  done
  die "no Python 3.9 or newer with the venv module (Debian: python3 python3-venv)"
}

fetch_sources() {
  python=$(find_python)
  rm -rf "$deps/pip" "$deps/src"
  mkdir -p "$deps/src"
  run_quietly "preparing pip" "$python" -m venv "$deps/pip"
  grep '^setuptools==' tools/deps.lock >"$deps/backend.txt"
  grep -E '^(yyjson|httptools)==' tools/deps.lock >"$deps/sources.txt"
  run_quietly "fetching the build back-end" "$deps/pip/bin/python" -m pip --disable-pip-version-check install --require-hashes --no-deps \
    --only-binary :all: -r "$deps/backend.txt"
  run_quietly "fetching yyjson and llhttp" "$deps/pip/bin/python" -m pip --disable-pip-version-check download --require-hashes --no-deps \
    --no-binary :all: --no-build-isolation -d "$deps/src" -r "$deps/sources.txt"
  for archive in "$deps"/src/*.tar.gz; do
    tar -xzf "$archive" -C "$deps/src" --no-same-owner
  done
  rm -rf "$deps/pip"
}

compile_static() { # name, include directory, sources...
  name=$1
  shift
  include=$1
  shift
  objects=
  for source in "$@"; do
    object="$deps/src/$(basename "$source" .c).$name.o"
    # shellcheck disable=SC2086
    ${compiler:-gcc} -std=c11 -O2 -g -fPIC -I"$include" -c "$source" -o "$object"
    objects="$objects $object"
  done
  rm -f "$deps/lib/lib$name.a"
  # shellcheck disable=SC2086
  ${archiver:-ar} rcs "$deps/lib/lib$name.a" $objects
}

build_sources() {
  mkdir -p "$deps"
  exec 9>"$deps/lock"
  flock 9 # two makes at once in one tree
  key=$(cat tools/deps.lock tools/deps.sh | sha256sum)
  if [ -f "$deps/config.mk" ] && [ "$key" = "$(cat "$deps/key" 2>/dev/null)" ]; then
    touch "$deps/config.mk"
    return
  fi
  from_source=
  pkg-config --exists 'yyjson >= 0.10' 2>/dev/null || from_source="$from_source yyjson"
  pkg-config --exists 'libllhttp >= 9.3' 2>/dev/null || from_source="$from_source llhttp"
  rm -rf "$deps/include" "$deps/lib" "$deps/licences"
  mkdir -p "$deps/include" "$deps/lib" "$deps/licences"
  [ -z "$from_source" ] || fetch_sources
  cflags=
  libs=
  case "$from_source" in
  *yyjson*)
    tree=$(echo "$deps"/src/yyjson-*/)
    cp "${tree}yyjson/yyjson.h" "$deps/include/"
    cp "${tree}LICENSE" "$deps/licences/yyjson"
    compile_static yyjson "${tree}yyjson" "${tree}yyjson/yyjson.c"
    libs="$libs $deps/lib/libyyjson.a"
    ;;
  *)
    cflags="$cflags $(pkg-config --cflags yyjson)"
    libs="$libs $(pkg-config --libs yyjson)"
    ;;
  esac
  case "$from_source" in
  *llhttp*)
    tree=$(echo "$deps"/src/httptools-*/vendor/llhttp/)
    cp "${tree}include/llhttp.h" "$deps/include/"
    cp "${tree}LICENSE" "$deps/licences/llhttp"
    compile_static llhttp "${tree}include" "${tree}src/api.c" "${tree}src/http.c" "${tree}src/llhttp.c"
    libs="$libs $deps/lib/libllhttp.a"
    ;;
  *)
    cflags="$cflags $(pkg-config --cflags libllhttp)"
    libs="$libs $(pkg-config --libs libllhttp)"
    ;;
  esac
  modules="libevent_core libevent_pthreads libevent_openssl libssl libcrypto libcurl sqlite3 libzip libpcre2-8 libutf8proc openblas"
  for module in $modules; do
    pkg-config --exists "$module" || die "pkg-config does not find $module"
  done
  # shellcheck disable=SC2086
  cflags="-isystem $deps/include $cflags $(pkg-config --cflags $modules | sed 's/-I/-isystem /g')"
  # shellcheck disable=SC2086
  libs="$libs $(pkg-config --libs $modules)"
  printf 'DEPS_CFLAGS := %s\nDEPS_LIBS := %s\n' "$cflags" "$libs" >"$deps/config.mk.new"
  printf '%s\n' "$key" >"$deps/key"
  mv "$deps/config.mk.new" "$deps/config.mk"
}

# The arm64 packages of this Debian, unpacked in a folder: what a cross-compiler takes for the root of the system, and qemu-user too. apt gets
# a state of its own, so that this system knows of no other architecture and nothing is installed.
build_sysroot() {
  root=$deps/root
  key=$(sha256sum <tools/deps.sh)
  if [ "$key" = "$(cat "$root/key" 2>/dev/null)" ]; then return; fi
  names="libc6-dev"
  for name in $packages_build $packages_test; do
    case $name in lib*-dev) names="$names $name" ;; esac
  done
  state=$PWD/$deps/apt
  rm -rf "$root" "$state"
  mkdir -p "$root" "$state/lists/partial" "$state/archives/partial"
  : >"$state/status"
  set -- -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$state" -o Dir::State::Lists="$state/lists" \
    -o Dir::State::status="$state/status" -o Dir::Cache="$state" -o Dir::Cache::archives="$state/archives" -o Acquire::Languages=none \
    -o Debug::NoLocking=1 -o APT::Sandbox::User=
  run_quietly "reading package lists of arm64" apt-get "$@" -qq update
  # shellcheck disable=SC2086
  run_quietly "fetching libraries for arm64" apt-get "$@" -qq -y --no-install-recommends --download-only install $names
  for package in "$state"/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
  done
  # What the installation of OpenBLAS would leave to update-alternatives.
  ln -sf openblas-pthread/libopenblas.so openblas-pthread/libopenblas.so.0 "$root/usr/lib/aarch64-linux-gnu/"
  rm -rf "$state"
  printf '%s\n' "$key" >"$root/key"
}

# As build_sources, for arm64.
build_arm() {
  mkdir -p "$deps"
  exec 8>"$deps/root.lock"
  flock 8
  build_sysroot
  libraries=$PWD/$deps/root/usr/lib/aarch64-linux-gnu
  compiler="aarch64-linux-gnu-gcc --sysroot=$deps/root"
  archiver=aarch64-linux-gnu-ar
  export PKG_CONFIG_LIBDIR="$libraries/pkgconfig:$libraries/openblas-pthread/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$PWD/$deps/root"
  build_sources
}

# The tests' Python: every package pinned by hash, wheels only, so nothing is run while installing.
build_venv() {
  mkdir -p "$deps"
  exec 9>"$deps/lock"
  flock 9
  key=$(sha256sum tests/requirements.lock)
  if [ -f build/venv/key ] && [ "$key" = "$(cat build/venv/key)" ] && build/venv/bin/python -c 'import pytest' 2>/dev/null; then
    return
  fi
  python=$(find_python)
  rm -rf build/venv
  run_quietly "preparing the tests' Python environment" "$python" -m venv build/venv
  run_quietly "installing $(grep -c == tests/requirements.lock) Python packages for the tests" build/venv/bin/python -m pip \
    --disable-pip-version-check install --require-hashes --no-deps --only-binary :all: --no-compile -r tests/requirements.lock
  printf '%s\n' "$key" >build/venv/key
}

case "${1:-}" in
system)
  shift
  [ "${PENSTOCK_SYSTEM:-debian}" = debian ] || exit 0
  install_system "$@"
  ;;
sources) build_sources ;;
arm)
  deps=build/deps-arm64
  build_arm
  ;;
venv) build_venv ;;
*) die "usage: tools/deps.sh system GROUP... | sources | arm | venv" ;;
esac
