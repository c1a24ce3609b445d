"""`POST /v1/embeddings`: refused with the reason; docs/api.md has the figures behind it."""

from starlette.requests import Request
from starlette.responses import Response

from models.errors import NotFound
from server.api.handler import Handler
from server.context import Context

WHY = (
    "this server has no embeddings: a mean of its students' hidden states finds the matching text less often than "
    "TF-IDF does; use a model trained for embeddings, such as one served by text-embeddings-inference"
)


def embeddings_handler(context: Context) -> Handler:
    """404, which clients do not retry; the body is not read."""

    async def create_embedding(request: Request) -> Response:
        raise NotFound(WHY)

    return create_embedding
