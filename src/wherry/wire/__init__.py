"""HTTP/1.1 on both sides, routes, raw streams, WebSocket, error envelopes: how bytes become requests and answers.

It knows no API: not what a path means, who may call it, or what a body says. `README.md` beside this has the terms, the
states of a connection and one walk through it.
"""
