"""OpenAI's own client, for a server of ours."""

import openai
from tests.e2e.process import ServerProcess


def client_of(server: ServerProcess) -> openai.OpenAI:
    """To be used in a `with`. It asks once, so that tests see the first answer."""
    url = f"http://{server.http}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
