"""The published engine, driven from a test that cannot hang."""

from __future__ import annotations

import asyncio
import faulthandler
import io
import sys
from contextlib import contextmanager

import pytest
from sagellm_core.llm_engine import LLMEngine, LLMEngineConfig
from sagellm_protocol import Request

LIMIT_S = 120


class Server:
    """One started engine and the event loop it lives in."""

    def __init__(self, runner, engine):
        self.engine = engine
        self._runner = runner

    def run(self, coroutine, limit_s=LIMIT_S):
        """The coroutine's result; a failure with every stack when it takes longer."""
        return self._runner.run(_watched(coroutine, limit_s))

    def generate(self, prompt, tokens, **options):
        """The tokens of one request."""
        return self.run(self.engine.generate(prompt, max_tokens=tokens, **options)).output_tokens

    def batch(self, prompts, tokens):
        """The tokens of requests that are made at once."""

        async def together():
            requests = [self.engine.generate(prompt, max_tokens=tokens) for prompt in prompts]
            return [response.output_tokens for response in await asyncio.gather(*requests)]

        return self.run(together())

    def stream(self, prompt, tokens):
        """The tokens of the deltas, and those of the end."""

        async def all_events():
            return [event async for event in self.engine.stream(prompt, max_tokens=tokens)]

        events = self.run(all_events())
        deltas = [event for event in events if event.event == "delta"]
        return [token for event in deltas for token in event.content_tokens], events[
            -1
        ].output_tokens

    def execute(self, prompt, tokens):
        """The tokens of a request of the protocol."""
        request = Request(request_id="r", trace_id="t", prompt=prompt, max_tokens=tokens)
        return self.run(self.engine.execute(request)).output_tokens


@contextmanager
def serve(path, **options):
    """A started engine on the checkpoint at ``path``, stopped when the context is left."""
    engine = LLMEngine(LLMEngineConfig(model_path=str(path), **{"backend_type": "auto", **options}))
    with asyncio.Runner() as runner:
        server = Server(runner, engine)
        server.run(engine.start())
        try:
            yield server
        finally:
            server.run(engine.stop())


async def _watched(coroutine, limit_s):
    task = asyncio.ensure_future(coroutine)
    done, _ = await asyncio.wait({task}, timeout=limit_s)
    if not done:
        stacks = io.StringIO()
        for each in asyncio.all_tasks():
            each.print_stack(file=stacks)
        task.cancel()
        faulthandler.dump_traceback(sys.__stderr__)
        pytest.fail(f"The engine gave no answer within {limit_s} s.\n{stacks.getvalue()}")
    return task.result()
