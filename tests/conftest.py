"""What all Python tests share: where the program, the models and the shared data are, or why a test is skipped."""
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Clients must not reach outside: no price list fetched, no trace sent.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LANGSMITH_TRACING", "false")
os.environ.setdefault("LANGCHAIN_TRACING_V2", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PENSTOCK_PACKED", str(ROOT / "build" / "packed")) # once for the homes of all tests


def pytest_configure(config):
    config.addinivalue_line("markers", "full: runs in `make test-full` only (tests/README.md says how long)")


def existing_file(variable, what):
    path = os.environ.get(variable)
    if not path or not os.path.exists(path):
        pytest.skip(f"{what} is not here ({variable})")
    return path


@pytest.fixture(scope="session")
def root():
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def penstock():
    """The program under test."""
    path = os.environ.get("PENSTOCK_BIN", str(ROOT / "build" / "penstock"))
    if not os.path.exists(path):
        pytest.skip("the program is not built")
    return path


@pytest.fixture(scope="session")
def smollm2():
    """Path of SmolLM2-135M-Instruct."""
    return existing_file("PENSTOCK_TEST_SMOLLM2", "the model smollm2-135m")


@pytest.fixture(scope="session")
def gemma3():
    """Path of Gemma-3-270M (base)."""
    return existing_file("PENSTOCK_TEST_GEMMA3", "the model gemma3-270m")


@pytest.fixture(scope="session")
def minilm():
    """Path of all-MiniLM-L6-v2, an encoder."""
    return existing_file("PENSTOCK_TEST_MINILM", "the model all-minilm-l6-v2")


@pytest.fixture(scope="session")
def test_data():
    """The folder of shared test data."""
    path = pathlib.Path(os.environ.get("PENSTOCK_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("the shared test data is not here (PENSTOCK_TEST_DATA)")
    return path


@pytest.fixture
def home(tmp_path):
    """An empty data directory; pass it as PENSTOCK_HOME."""
    path = tmp_path / "home"
    path.mkdir()
    return path
