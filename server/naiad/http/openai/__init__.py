"""OpenAI's API over every model that writes or embeds text: decode, one data plane, encode."""
