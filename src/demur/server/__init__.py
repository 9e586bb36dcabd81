"""The server: an OpenAI-compatible API over one batching engine, steered row by row."""
