"""The least that the framework can serve: what a cold start costs before our own code."""

import flask
import functions_framework


@functions_framework.http
def cleanup(_request: flask.Request) -> str:
    """Say hello."""
    return '{"outcome": "hello", "reason": null}'
