"""
A process that runs what it is told, one piece of Python after the other: `python client.py [missing module]`.

Each line of the standard input is JSON, code and names for it; each line of the standard output is JSON, what the code
has left in `answer` and the last line of the error that it ended with. Whatever else is printed goes to the standard
error. Separate from the tests, since the client of the Hub reads its address when it is imported.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from types import SimpleNamespace


del sys.path[0]  # the tests' folder: a user's process has no such modules
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for missing in sys.argv[1:]:
    sys.modules[missing] = None  # as if it were not installed

# The client of the Hub waits half a minute in all before it gives up what is broken off
with contextlib.suppress(ImportError, AttributeError):
    from huggingface_hub.utils import _http

    _http.time = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})

names = {}
for line in sys.stdin:
    code, given = json.loads(line)
    names |= {"answer": None, **given}
    error = None
    try:
        exec(code, names)
    except Exception as caught:
        traceback.print_exc()
        error = traceback.format_exception_only(caught)[-1].strip()
    print(json.dumps([names["answer"], error]), file=answers, flush=True)
