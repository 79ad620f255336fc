"""The HTTP edge: OpenAI's routes over any `core.TextGenerator`. pydantic, FastAPI and uvicorn live here alone.

Knows no head, no pipeline and no model file.
"""

from hyperlane.api.app import create_app
from hyperlane.api.server import HttpServer, bind_socket

__all__ = ["HttpServer", "bind_socket", "create_app"]
