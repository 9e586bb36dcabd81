"""Steering inside vLLM: a plug-in for its processes, and what `demur serve --engine vllm` puts before its server."""
