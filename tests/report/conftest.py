import pytest

from whet.measure.record import Arm, Comparison, Metric, claim, new_record

ARMS = [("greedy", 300, 64.0), ("soar", 320, 27.3), ("threshold", 290, 24.1), ("random", 201, 64.0)]


def arm(name, correct, forwards):
    share = correct / 500
    return Arm(
        name=name,
        chain=f"{name}:k=1",
        metrics={
            "accuracy": Metric(value=share, ci=(share - 0.04, share + 0.04), n=500, unit="fraction")
        },
        cost={"forwards": forwards * 500, "seconds": 12.34, "peak_bytes": 3.5 * 2**30},
    )


@pytest.fixture
def record():
    claims = [
        claim("few", "ratio", "soar", "greedy", "forwards", 0.42, (0.40, 0.44), "<=", 0.5, "Half"),
        claim("good", "difference", "soar", "greedy", "accuracy", 0.04, (-0.01, 0.09), ">", 0.0),
        claim("fast", "ratio", "soar", "greedy", "seconds", 1.0, (0.9, 1.1), "<", 0.5),
    ]
    return new_record(
        "soar",
        title="SOAR <b>bold</b> [red]",
        level="cpu",
        seeds={"tasks": 7},
        arms=[arm(*row) for row in ARMS],
        claims=claims,
        comparisons=[
            Comparison(a="soar", b="greedy", metric="accuracy", value=0.04, test="t & u", p=0.03)
        ],
        notes=["A note with <script>alert(1)</script>."],
    )
