"""What the fault tests share: a place of their own, where commands run as the user of the tests, and when that is root, as `nobody` too."""
import os
import resource
import shutil
import subprocess
import tempfile

import pytest

USERS = ["self", "nobody"]


class Place:
    """A directory that both users may write to, and commands run there."""

    def __init__(self, path, user, penstock):
        self.path, self.user, self.penstock = path, user, penstock
        self.home = os.path.join(path, "home")

    def write(self, name, data):
        path = os.path.join(self.path, name)
        with open(path, "wb") as f:
            f.write(data)
        os.chmod(path, 0o644)
        return path

    def _who(self, home=None):
        who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if self.user == "nobody" else {}
        environment = {"PATH": os.environ["PATH"], "PENSTOCK_HOME": home or self.home, "HOME": self.path}
        return {"cwd": self.path, "env": environment, "stdin": subprocess.DEVNULL, **who}

    def run(self, *words, limit=None, home=None):
        """limit: the largest file in bytes that may be written, which stands in for a full disk."""
        def before():
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.run([self.penstock, *map(str, words)], capture_output=True, preexec_fn=before, timeout=120, check=False,
                              **self._who(home))

    def start(self, *words):
        """A process that goes on. Whoever starts it ends it."""
        return subprocess.Popen([self.penstock, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **self._who())

    def refused(self, *words, says=(), status=2, **how):
        before = sorted(self.listing())
        done = self.run(*words, **how)
        text = done.stderr.decode()
        lines = text.strip().splitlines()
        assert done.returncode == status, (words, done.returncode, text)
        assert 1 <= len(lines) <= 2 and lines[0].startswith("penstock: "), text
        assert done.stdout == b"", done.stdout
        for part in [says] if isinstance(says, str) else says:
            assert part in text, (part, text)
        assert sorted(self.listing()) == before
        return text

    def listing(self):
        """Every file but those that stay by design: the empty ones that locks are taken on, a database that has nothing in it yet, and the packed
        weights of a sound model, which the next command is glad to find."""
        found = [os.path.join(d, f) for d, _, files in os.walk(self.path) for f in files if os.path.basename(d) != "locks" and not f.endswith(".packed")]
        return [f for f in found if os.path.basename(f) != "penstock.db" or os.path.getsize(f)]


@pytest.fixture(params=USERS)
def place(request, penstock):
    if request.param == "nobody" and os.geteuid() != 0:
        pytest.skip("only root can become another user, and all else here has run as an ordinary one")
    path = tempfile.mkdtemp(prefix="penstock-bad-")
    os.chmod(path, 0o777)
    program = penstock
    if request.param == "nobody":  # the tree may lie where nobody may not go
        program = os.path.join(path, "program")
        shutil.copy(penstock, program)
        os.chmod(program, 0o755)
    os.mkdir(os.path.join(path, "home"))
    os.chmod(os.path.join(path, "home"), 0o777)
    yield Place(path, request.param, program)
    shutil.rmtree(path, ignore_errors=True)
