"""`whet methods`: the catalogue as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter

from whet import catalogue
from whet.errors import OptionError, nearest
from whet.report.tables import show

app = App(
    name="methods", help_epilogue="Example: `whet methods --for llada`, `whet methods soar --json`"
)


@app.default
def methods(
    name: str | None = None,
    *,
    for_: Annotated[
        str | None, Parameter(name="--for", help="Only for this kind of model.")
    ] = None,
    json: bool = False,
) -> None:
    """List every method, its paper, what it applies to and its evidence.

    Parameters
    ----------
    name
        Show one method only.
    json
        Print JSON instead of a table.
    """
    rows = list(catalogue.methods().values()) if name is None else [catalogue.get(name)]
    if for_ is not None:
        kinds = {kind for m in rows for kind in m.applies_to}
        if for_ not in kinds:
            raise OptionError(f"no method applies to {for_!r}: {nearest(for_, kinds)}")
        rows = [m for m in rows if for_ in m.applies_to]
    table = [
        asdict(m)
        | {
            "method": " / ".join((m.id, *m.aliases)),
            "verbs": " ".join(m.parts),
            "models": ", ".join(m.applies_to),
            "evidence": f"results/reproduce/{m.id}.json" if "reproduce" in m.parts else "",
        }
        for m in rows
    ]
    columns = ("method", "kind", "arxiv", "verbs", "summary", "evidence")
    show("Methods", columns, table, json=json)
