"""The command line; `main` turns errors into messages and exit codes.

Exit codes: 0 nothing found, 1 findings, 2 error, 3 something could not be scored, 4 usage, 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback

from jaxguard.errors import JaxguardError, OptionError, UnscorableError

ERROR, UNSCORABLE, USAGE, INTERRUPTED = 2, 3, 4, 130
_ALLOCATIONS = 50_000


def main() -> None:
    """Entry point of the `jaxguard` command."""
    from jaxguard.cli import console
    from jaxguard.cli.app import app

    # Programs are traced into many small objects that live on: looking for garbage among them again and again takes a
    # tenth of the time until the first result.
    gc.set_threshold(_ALLOCATIONS)
    try:
        app()
    except SystemExit as exit_:
        # The parser's own code for bad usage is 2, ours for errors.
        sys.exit(USAGE if exit_.code == ERROR else exit_.code)
    except OptionError as error:
        console.error("usage", error)
        sys.exit(USAGE)
    except UnscorableError as error:
        console.error("nothing could be scored", error)
        sys.exit(UNSCORABLE)
    except JaxguardError as error:
        console.error(type(error).__name__, error)
        sys.exit(ERROR)
    except KeyboardInterrupt:
        console.error("interrupted", "nothing was written half")
        sys.exit(INTERRUPTED)
    except Exception as error:
        # A crash must not read as "findings", which is Python's own exit code for it.
        if os.environ.get("JAXGUARD_DEBUG"):
            traceback.print_exc()
        message = " ".join(str(error).split()) or "no message"
        console.error(f"unexpected {type(error).__name__}", f"{message}; JAXGUARD_DEBUG=1 shows where it happened")
        sys.exit(ERROR)
