import pytest

from whet.measure.record import Arm, Metric, new_record


@pytest.fixture
def make():
    """A function that makes a small record of two arms, with the fields given changed."""
    arms = [
        Arm(name=name, chain=name, metrics={"accuracy": Metric(value=0.5, ci=(0.4, 0.6), n=10)})
        for name in ("soar", "greedy")
    ]

    def build(method="soar", **changes):
        return new_record(
            method, **{"level": "smoke", "seeds": {"tasks": 1}, "arms": arms, **changes}
        )

    return build
