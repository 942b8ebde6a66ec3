"""`python -m tests.bench.bare_events PORT`: a graph's stream as Server-Sent Events, and no more.

The reference: a run in each request, its events sent as they come; none is kept, and no other process has them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.bench.emitting import graphs


async def ready(request: Request) -> Response:
    """That it serves."""
    return JSONResponse({})


async def run(request: Request) -> Response:
    """Run the graph that the path names, with the query as its input."""
    given: Any = {name: float(value) for name, value in request.query_params.items()}
    given["events"] = int(given["events"])
    graph = graphs[request.path_params["graph"]]

    async def events() -> AsyncIterator[dict[str, str]]:
        async for mode, item in graph.astream(given, stream_mode=["messages", "custom"]):
            event: Any = item
            if mode == "messages":
                event = {"event_type": "on_llm_stream", "data": {"content": item[0].content}}
            yield {"event": event["event_type"], "data": json.dumps(event)}

    return EventSourceResponse(events())


app = Starlette(routes=[Route("/ready", ready), Route("/{graph}", run)])
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
