"""The way to providers: the HTTP client that remote backends are lent, with one connection pool per worker.

`client` is what backends see, `connection` the wire, `address` where requests go. What a provider sends is
hostile: redirects are not followed (they would carry the credential elsewhere), everything is read within bounds,
and no error text repeats an address with credentials in it. May import the plugin API.
"""

from headgate_gateway.upstream.client import HttpUpstream

__all__ = ["HttpUpstream"]
