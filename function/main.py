"""Registers the entry points, and hands each request to the app."""

import flask
import functions_framework
from modelarts_cleanup import app
from werkzeug.exceptions import HTTPException


@functions_framework.http
def cleanup(request: flask.Request) -> app.Answer:
    """Serve an expiry event. An HTTP function, whatever signature the platform asks for: we read every body."""
    return app.cleanup(request)


if flask.has_app_context():
    # Served by the framework: an event posted to a path that it keeps for itself is an event all the same.
    def _cleanup_all_the_same(_error: HTTPException) -> app.Answer:
        return app.cleanup(flask.request)

    flask.current_app.url_map.merge_slashes = False
    flask.current_app.register_error_handler(HTTPException, _cleanup_all_the_same)
