"""What the flow tests share: a `penstock serve` of their own, on a port that the system chooses, with a data directory of its own."""
import json
import os
import pwd
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest


class Served:
    """One running `penstock serve`. Its log is kept; .stop() is the end as SIGTERM makes it."""

    def __init__(self, program, home, arguments, user=None):
        self.home = str(home)
        environment = {**os.environ, "PENSTOCK_HOME": self.home, "PENSTOCK_LOG": "info"}
        command = [program, "serve", "--port", "0", *arguments]
        who = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **who)
        self.log = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.hello = self.process.stdout.readline()
        found = re.search(r" at (http://\S+)/v1;", self.hello)
        if not found:
            self.process.wait(timeout=300)
            self._reader.join()
            raise AssertionError(f"serve did not start: {self.hello!r} {''.join(self.log)}")
        self.url = found.group(1)
        self.port = int(self.url.rsplit(":", 1)[1])

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line)

    def request(self, path, body=None, method=None, headers=None, raw=None):
        """Returns (status, headers, text)."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers={"content-type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read().decode()

    def metrics(self):
        """{'name{labels}': value} of GET /metrics."""
        status, _, text = self.request("/metrics")
        assert status == 200, text
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line and line[0] != "#"}

    def metric(self, name):
        """A metric's value, summed over its labels."""
        return sum(value for key, value in self.metrics().items() if key == name or key.startswith(name + "{"))

    def until(self, condition, what, seconds=300):
        """Waits for a condition. The time is only the bound after which the test gives up."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.02)
        raise AssertionError(f"never came: {what}")

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=300)
        self._reader.join(timeout=10)
        return code


@pytest.fixture
def serve(penstock, home):
    """serve(*arguments, home=..., user=..., program=...) -> Served; all are stopped at the end, and must then end well."""
    running = []

    def start(*arguments, home=home, user=None, program=penstock):
        running.append(Served(program, home, [str(a) for a in arguments], user))
        return running[-1]

    yield start
    for one in running:
        one.stop()
    for one in running:
        assert one.process.returncode in (0, -signal.SIGKILL), "".join(one.log[-20:])
        text = "".join(one.log)
        assert "Sanitizer" not in text and "runtime error" not in text, text


@pytest.fixture(scope="module")
def served(penstock, smollm2, tmp_path_factory):
    """A server with SmolLM2, shared by a module's tests."""
    one = Served(penstock, tmp_path_factory.mktemp("home"), ["--model", smollm2, "--slots", "8", "--drain-ms", "2000"])
    yield one
    assert one.stop() == 0, "".join(one.log[-20:])
    text = "".join(one.log)
    assert "Sanitizer" not in text and "runtime error" not in text, text


@pytest.fixture(scope="module")
def encoder(penstock, minilm, tmp_path_factory):
    """A server with an encoder, and a generator beside it where there is one."""
    generator = os.environ.get("PENSTOCK_TEST_SMOLLM2")
    models = ["--model", minilm] + (["--model", generator] if generator else [])
    one = Served(penstock, tmp_path_factory.mktemp("home"), [*models, "--drain-ms", "2000"])
    one.model = os.path.splitext(os.path.basename(minilm))[0]
    one.generator = os.path.splitext(os.path.basename(generator))[0] if generator else None
    yield one
    assert one.stop() == 0, "".join(one.log[-20:])
    text = "".join(one.log)
    assert "Sanitizer" not in text and "runtime error" not in text, text


@pytest.fixture(scope="module")
def model(smollm2):
    """What SmolLM2's file is called by clients."""
    return os.path.splitext(os.path.basename(smollm2))[0]


@pytest.fixture
def cli(penstock, home):
    """cli(*arguments, ok=True) -> CompletedProcess of the program in the test's data directory."""

    def run(*arguments, ok=True):
        done = subprocess.run([penstock, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, "PENSTOCK_HOME": str(home)}, timeout=300)
        assert not ok or done.returncode == 0, done.stderr
        return done

    return run
