"""What the tests of the library share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """The library as its users run it: without the shape checks of the tests, which would speak before its own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
