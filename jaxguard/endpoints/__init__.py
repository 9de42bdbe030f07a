"""Models that can only be queried: Python functions and HTTP endpoints.

Every model behind an API is one function, `images [N, H, W, C] -> scores [N, K]`:

    suspect = endpoints.http("https://api.example.com/v1/models/m:predict", headers=headers, rate=5, cache="m.answers")
    scores = endpoints.query(suspect, images)

Every answer is checked: one row per image, the same number of finite scores in each. Anything else, or no answer, is
one `EndpointError`.
"""

from jaxguard.endpoints.answers import Kind
from jaxguard.endpoints.encodings import ENCODINGS, Encoding
from jaxguard.endpoints.endpoint import Endpoint, Progress, QueryFn, local, query
from jaxguard.endpoints.http_endpoint import http

__all__ = [
    "ENCODINGS",
    "Encoding",
    "Endpoint",
    "Kind",
    "Progress",
    "QueryFn",
    "http",
    "local",
    "query",
]
