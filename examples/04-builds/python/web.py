"""One page."""
# pyright: basic, reportMissingImports=false
# (flask is in the image)

from flask import Flask


def application() -> Flask:
    """Make the application, as waitress asks for it."""
    app = Flask(__name__)

    @app.get("/")
    def hello() -> str:
        return "hello from flask\n"

    return app
