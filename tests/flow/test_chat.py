"""`penstock chat` as a person uses it: from a pipe, and on a terminal with Ctrl-C and Ctrl-D."""
import os
import pty
import re
import select
import subprocess
import time

import pytest


def chat(penstock, model, text, *options):
    return subprocess.run([penstock, "chat", model, *options], input=text.encode(), capture_output=True, timeout=300, check=False)


def test_turns_from_a_pipe_share_their_prefix(penstock, smollm2):
    text = "Hello, my name is Ada and I live in Lisbon with two cats and a dog. " + "I like the sea. " * 12
    text += "\nWhere do I live?\n"
    done = chat(penstock, smollm2, text, "-n", "40", "--timings")
    assert done.returncode == 0, done.stderr
    turns = [[int(n) for n in m] for m in re.findall(rb"prompt (\d+) tokens, (\d+) of them cached", done.stderr)]
    assert len(turns) == 2
    assert turns[0][1] == 0 and turns[1][0] > turns[0][0]
    assert turns[1][1] >= turns[0][0] // 64 * 64 and turns[1][1] > 0


def test_commands(penstock, smollm2):
    text = "/system Answer in one word.\nIs the sky blue?\n/reset\n/nonsense\n/exit\nnever asked\n"
    done = chat(penstock, smollm2, text, "-n", "8", "--timings")
    assert done.returncode == 0
    assert done.stderr.count(b"(prompt ") == 1
    assert b"there is no command /nonsense" in done.stderr and b"(forgotten)" in done.stderr


def test_a_model_without_template_answers_and_stops(penstock, gemma3):
    done = chat(penstock, gemma3, "What is the capital of France?\n", "-n", "40")
    assert done.returncode == 0, done.stderr
    assert b"User:" not in done.stdout


def test_a_conversation_that_is_too_long_is_one_line(penstock, smollm2):
    done = chat(penstock, smollm2, "word " * 20000 + "\n", "-n", "8")
    assert done.returncode == 2
    lines = done.stderr.decode().strip().splitlines()
    assert len(lines) == 1 and "/reset starts anew" in lines[0], done.stderr


class Terminal:
    def __init__(self, command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        self.seen, self.at = b"", 0  # at: what was waited for before ends here

    def wait_for(self, text, seconds=120):
        end = time.monotonic() + seconds
        while text not in self.seen[self.at:]:
            if time.monotonic() > end:
                pytest.fail(f"waited for {text!r}, saw {self.seen!r}")
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096)
                except OSError:
                    pytest.fail(f"ended while waiting for {text!r}; saw {self.seen!r}")
        self.at = self.seen.index(text, self.at) + len(text)

    def send(self, data):
        os.write(self.fd, data)

    def end(self, seconds=60):
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.fd, 4096)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, 9)
        pytest.fail("did not end")


def test_interrupt_stops_the_answer_not_the_program(penstock, smollm2):
    t = Terminal([penstock, "chat", smollm2, "-n", "4000", "--repeat-penalty", "1.05"])
    t.wait_for(b"> ")
    t.send(b"Write a very long story about the sea, the wind and a lighthouse.\n")
    t.wait_for(b"\n")
    t.wait_for(b" ")
    t.send(b"\x03")
    t.wait_for(b"(stopped)")
    t.wait_for(b"> ")
    t.send(b"/reset\n")
    t.wait_for(b"(forgotten)")
    t.send(b"\x03")
    t.wait_for(b"once more")
    t.send(b"\x04")
    assert t.end() == 0


def test_interrupt_twice_at_the_prompt_ends(penstock, smollm2):
    t = Terminal([penstock, "chat", smollm2])
    t.wait_for(b"> ")
    t.send(b"\x03")
    t.wait_for(b"once more")
    t.wait_for(b"> ")
    t.send(b"\x03")
    assert t.end() == 0
