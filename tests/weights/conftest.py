"""What the tests of weights share with those of inference."""

from tests.inference.conftest import run  # noqa: F401 - a fixture
