"""Speaks HTTP to the very address it was given: no redirect, no proxy, nothing from the environment."""

import logging
from http.cookiejar import DefaultCookiePolicy

import requests
from requests.adapters import HTTPAdapter


class DirectSession(requests.Session):
    """A pooled session; safe to use from many threads, as no cookie is kept."""

    def __init__(self) -> None:
        super().__init__()
        # It logs broken headers of an answer as they are, and an answer may echo what we sent.
        logging.getLogger("urllib3").propagate = False
        # No proxy, no .netrc, no certificates from the environment: a signed request goes where it says.
        self.trust_env = False
        self.headers.clear()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=32, max_retries=0)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """
        Find nowhere to be redirected to.

        `allow_redirects=False` alone still reads the body of a redirect without bound and parses its target.
        """
