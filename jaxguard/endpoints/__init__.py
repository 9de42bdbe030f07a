"""Models that can only be queried: a Python function or an HTTP endpoint, never their weights.

Every suspect behind an API is one function, `images [N, H, W, C] -> scores [N, K]`:

    suspect = endpoints.http("https://api.example.com/v1/models/m:predict", headers=headers, rate=5, cache="m.answers")
    scores = endpoints.query(suspect, images)

An answer is believed once it has been checked: one row per image, as many finite numbers in each. Whatever else comes
back, or nothing, ends in one `EndpointError`.
"""

from jaxguard.endpoints.answers import Kind
from jaxguard.endpoints.encodings import ENCODINGS, Encoding
from jaxguard.endpoints.endpoint import Endpoint, Progress, QueryFn, Source
from jaxguard.endpoints.http_endpoint import http
from jaxguard.endpoints.python_function import local, query

__all__ = [
    "ENCODINGS",
    "Encoding",
    "Endpoint",
    "Kind",
    "Progress",
    "QueryFn",
    "Source",
    "http",
    "local",
    "query",
]
