import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis
from modelarts_cleanup import settings

# The examples are the same in every run, so that a red test is red again; `thorough` looks for new ones.
# A slow machine is no fault.
hypothesis.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis.load_profile("patient")
hypothesis.register_profile("modest", max_examples=100, derandomize=True)
hypothesis.register_profile("thorough", max_examples=5000)
hypothesis.register_profile(
    "mutation",
    max_examples=10,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # that a test fails is enough to know
)
hypothesis.load_profile("modest")


@pytest.fixture(scope="session", autouse=True)
def _environment_of_nobody() -> Iterator[None]:
    """Keep proxies and settings of whoever runs the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in tuple(os.environ):
            if name.lower().endswith("_proxy") or name in settings.NAMES:
                patch.delenv(name)
        yield
