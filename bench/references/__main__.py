"""Serves one reference on a free port: python -m bench.references NAME URL_OF_THE_MODEL_ENDPOINT"""

from __future__ import annotations

import asyncio
import importlib
import sys

import grpc

KINDS = {
    "bare": "streams",
    "socket": "streams",
    "durable": "streams",
    "sdk": "streams",
    "loop": "aiohttp_loop",
    "langgraph": "langgraph_agent",
    "pydantic-ai": "pydantic_agent",
}
"""The file that each is in; only that one is imported."""


async def serve(name: str, base_url: str) -> None:
    """Until the process is ended."""
    module = importlib.import_module(f"bench.references.{KINDS[name]}")
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    await module.add(server, name, base_url)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:3]))
