#!/usr/bin/env python3
"""Writes tests/requirements.lock: every package of tests/requirements.txt and all they need, pinned by version and SHA-256.

    tools/lock_python.py [--keep] REQUIREMENTS LOCK

pip itself resolves, once for this machine; the other machines and interpreters named in TARGETS are then asked for the same
versions, so that the lock holds the hashes of all their wheels. --keep resolves with the versions that the lock names now.
Wheels only: nothing is run while installing.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile

TARGETS = [(python, machine) for python in ("3.11", "3.12", "3.13") for machine in ("x86_64", "aarch64")]
GLIBC = 36  # Debian 12


def resolve(requirements, constraints, target=None):
    """Returns {name: (version, sha256)} as pip would install it."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run", "--ignore-installed",
               "--only-binary", ":all:", "--report", "-", "-r", requirements]
    if constraints:
        command += ["-c", constraints]
    with tempfile.TemporaryDirectory() as scratch:
        if target:
            python, machine = target
            command += ["--python-version", python, "--implementation", "cp", "--target", scratch]
            for minor in range(GLIBC, 4, -1):
                command += ["--platform", f"manylinux_2_{minor}_{machine}"]
            command += ["--platform", f"manylinux2014_{machine}", "--platform", f"linux_{machine}"]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        found[name] = (item["metadata"]["version"], item["download_info"]["archive_info"]["hashes"]["sha256"])
    return found


def write_constraints(path, pins):
    with open(path, "w", encoding="utf-8") as out:
        for name, version in sorted(pins.items()):
            out.write(f"{name}=={version}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the versions of the present lock")
    parser.add_argument("requirements")
    parser.add_argument("lock")
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        if options.keep:
            with open(options.lock, encoding="utf-8") as lock:
                pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read(), re.M))
            write_constraints(constraints.name, pins)
        first = resolve(options.requirements, constraints.name if options.keep else None)
        pins = {name: version for name, (version, _) in first.items()}
        hashes = {name: {sha256} for name, (_, sha256) in first.items()}
        write_constraints(constraints.name, pins)
        for target in TARGETS:
            try:
                other = resolve(options.requirements, constraints.name, target)
            except subprocess.CalledProcessError:
                print(f"lock_python: no complete set of wheels for Python {target[0]} on {target[1]}; left out", file=sys.stderr)
                continue
            for name, (version, sha256) in other.items():
                pins.setdefault(name, version)
                hashes.setdefault(name, set()).add(sha256)
    with open(options.lock, "w", encoding="utf-8") as lock:
        lock.write(f"# Written by tools/lock_python.py from {options.requirements}; do not edit.\n")
        for name in sorted(pins):
            lock.write(f"{name}=={pins[name]}")
            for sha256 in sorted(hashes[name]):
                lock.write(f" \\\n    --hash=sha256:{sha256}")
            lock.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
