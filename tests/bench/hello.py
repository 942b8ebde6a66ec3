"""A bare FastAPI of one route: what starts are compared with."""

from __future__ import annotations

import fastapi

app = fastapi.FastAPI()


@app.get("/health")
async def health() -> dict[str, str]:
    """As ours answers."""
    return {"status": "healthy"}
