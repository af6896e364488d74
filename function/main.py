"""Registers the entry points, and hands each request to the app."""

from collections.abc import Callable

import flask
import functions_framework
from modelarts_cleanup import app
from werkzeug.exceptions import HTTPException


@functions_framework.http
def cleanup(request: flask.Request) -> app.Answer:
    """Serve expiry events. An HTTP function, whatever signature the platform asks for: we read every body."""
    return app.cleanup(request)


@functions_framework.http
def webhook(request: flask.Request) -> app.Answer:
    """Serve signed webhooks, at an address of their own."""
    return app.webhook(request)


if flask.has_app_context():
    from gunicorn.config import LimitRequestFields

    # The framework answers for some paths itself (/robots.txt), and redirects others (//): what is
    # posted there is served like anything else, so that no answer of its own starts a redelivery storm.
    _entry_points: dict[str, Callable[[flask.Request], app.Answer]] = {"cleanup": app.cleanup, "webhook": app.webhook}

    def _serve(_error: HTTPException) -> app.Answer:
        return _entry_points[flask.current_app.name](flask.request)

    # A message may have 100 attributes, and unwrapped each is a header beside those of HTTP itself: with the
    # server's own limit of 100 such a message would be answered 400 again and again.
    LimitRequestFields.default = 200

    flask.current_app.url_map.merge_slashes = False
    flask.current_app.url_map.strict_slashes = False
    flask.current_app.register_error_handler(HTTPException, _serve)
