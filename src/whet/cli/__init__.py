"""The command line: one thin file per verb, imported only when its verb is used."""

from __future__ import annotations

import os
import sys

from cyclopts import App, CycloptsError

from whet import __version__
from whet.errors import WhetError

app = App(
    name="whet",
    version=__version__,
    suppress_keyboard_interrupt=False,
    help="Make generative models smaller and faster, and measure honestly what that cost.",
    help_epilogue=(
        'Start with `whet methods`, or `whet generate --decoder soar "sudoku 1.3..2..4...1..3="`.'
    ),
)
for _verb, _help in (
    ("methods", "The catalogue: every method, its paper, what it applies to, its evidence."),
    ("generate", "Text from any LM; diffusion LMs with any decoder."),
    ("compress", "Factorize, prune, quantize: methods in a chain, and what they cost."),
    ("train", "Train a model from a recipe."),
    ("data", "Build training data: trajectories, reasoning paths."),
    ("evaluate", "Accuracy on fresh problems with verified answers; perplexity."),
    ("benchmark", "Variants side by side in one run: quality, forwards, time, memory."),
    ("reproduce", "The small-scale proof of one paper's claim, on this machine."),
    ("report", "Records as tables, plots and one self-contained page."),
    ("doctor", "What is installed, what is missing, what this machine can do."),
):
    app.command(f"whet.cli.{_verb}:app", name=_verb, help=_help)


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Errors end in one sentence on stderr and exit code 2; Ctrl-C in 130."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        _fail(" ".join(str(error).split()))
    except WhetError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: files keep what was finished\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away (`whet … | head`): not an error of ours.
        _abandon_stdout()
        sys.exit(141)
    except OSError as error:
        _abandon_stdout()
        _fail(f"{error.filename or 'output'}: {error.strerror or error}")


def _abandon_stdout() -> None:
    """What could not be written must not be tried again when the interpreter ends."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives until the process ends


def _fail(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence}\n")
    sys.exit(2)
