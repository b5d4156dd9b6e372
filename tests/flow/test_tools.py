"""The checks of `make check` and the test runner find what they are for."""
import subprocess
import textwrap

import pytest


def run(*command, cwd):
    return subprocess.run([str(c) for c in command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")


@pytest.mark.parametrize("folder, include, complaint", [
    ("kernels", "<penstock/engine.h>", "may not include <penstock/engine.h>"),
    ("optimizer", "<penstock/tune.h>", "may not include <penstock/tune.h>"),
    ("gateway", '"engine/gguf.h"', "only headers of gateway/ itself"),
    ("engine", '"gguf.h"', "only headers of engine/ itself"),
    ("engine", "<yyjson.h>", "does not use yyjson"),
    ("base", "<penstock/chat.h>", "may not include <penstock/chat.h>"),
    ("sundries", "<stdio.h>", "no folder of the design"),
])
def test_check_layers_refuses(root, tmp_path, folder, include, complaint):
    write(tmp_path / "src" / folder / "a.c", f"#include <stdio.h>\n#include {include}\n")
    result = run(root / "tools/check_layers", tmp_path, cwd=root)
    assert result.returncode == 1
    assert complaint in result.stdout


@pytest.mark.parametrize("folder, include", [
    ("kernels", "<penstock/base.h>"),
    ("engine", "<penstock/chat.h>"),
    ("engine", '"engine/gguf.h"'),
    ("cli", "<penstock/optimizer.h>"),
    ("base", "<yyjson.h>"),
    ("net", "<event2/event.h>"),
])
def test_check_layers_accepts(root, tmp_path, folder, include):
    write(tmp_path / "src" / folder / "a.c", f"#include {include}\n")
    result = run(root / "tools/check_layers", tmp_path, cwd=root)
    assert result.returncode == 0, result.stdout


def test_check_symbols(root, tmp_path):
    for folder, name, good in [("net", "pst_net_open", True), ("base", "pst_open", True), ("net", "pst_open", False), ("wire", "helper", False)]:
        objects = tmp_path / f"{folder}-{name}"
        write(objects / folder / "a.c", f"int {name}(void);\nint {name}(void) {{ return 0; }}\nstatic int own = 3; int *{name}_p(void); int *{name}_p(void) {{ return &own; }}\n")
        assert run("gcc", "-c", "a.c", "-o", "a.o", cwd=objects / folder).returncode == 0
        result = run(root / "tools/check_symbols", objects, cwd=root)
        assert (result.returncode == 0) == good, result.stdout
        assert good or f"src/{folder}/a.c: {name} " in result.stdout


def test_check_sizes(root, tmp_path):
    body = "  x++;\n" * 160
    write(tmp_path / "long.c", "int f(int x) {\n" + body + "  return x;\n}\n")
    write(tmp_path / "reason.c", "/* Sums.\n * long: one step of a table-driven machine each. */\nint f(int x) {\n" + body + "  return x;\n}\n")
    write(tmp_path / "file.c", "int g(void) { return 1; }\n" + "/* */\n" * 1300)
    result = run(root / "tools/check_sizes", "long.c", cwd=tmp_path)
    if "ctags" in result.stdout and "FileNotFoundError" in result.stdout:
        pytest.skip("universal-ctags is not installed (make deps)")
    assert result.returncode == 1 and "f has 163 lines" in result.stdout
    assert run(root / "tools/check_sizes", "reason.c", cwd=tmp_path).returncode == 0
    assert run(root / "tools/check_sizes", "file.c", cwd=tmp_path).returncode == 1


def run_tests(root, tmp_path, script, *options):
    write(tmp_path / "program", "#!/bin/sh\n" + textwrap.dedent(script))
    (tmp_path / "program").chmod(0o755)
    return run(root / "tools/run_tests", *options, tmp_path / "program", cwd=tmp_path)


def test_runner_counts(root, tmp_path):
    result = run_tests(root, tmp_path, """
        echo 1..3
        echo ok 1 - one
        echo "0x1 != 0x2"
        echo not ok 2 - two
        echo "no model here"
        echo "ok 3 # SKIP three"
        exit 1
        """)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "1 passed, 1 failed, 1 skipped"
    assert "0x1 != 0x2" in result.stdout
    assert "program three: no model here" in result.stdout


@pytest.mark.parametrize("script, complaint", [
    ("echo 1..2; echo ok 1 - one; kill -SEGV $$", "ended by SIGSEGV"),
    ("echo 1..1; echo ok 1 - one; echo leak; exit 23", "ended with status 23"),
    ("exit 0", "no test ran"),
    ("echo 1..1; sleep 60", "time limit"),
])
def test_runner_never_mistakes_silence_for_success(root, tmp_path, script, complaint):
    result = run_tests(root, tmp_path, script, "--timeout", "2")
    assert result.returncode == 1
    assert complaint in result.stdout
    assert " 1 failed, 0 skipped" in result.stdout.splitlines()[-1]
