"""The processes that run the model: rows come and go with vLLM's requests, blocks pass their output through a session."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from demur.errors import ModelError, SettingsError
from demur.models.checkpoint import checkpoint_hash
from demur.models.hooks import for_good
from demur.models.load import LanguageModel
from demur.models.sites import find_blocks
from demur.server.vllm.fitness import check_engine
from demur.server.vllm.options import Options
from demur.server.vllm.rows import Rows, check_output


def watch(runner: Any, options: Options) -> Rows:
    """Steers a model runner (vLLM's V1 runner, of GPU or CPU) whose model has been loaded.

    Raises:
        SettingsError: another runner, or settings past which a policy would not hold.
        ModelError: the residual stream cannot be found.
        PolicyError, SAEError, FileError: a policy that cannot be used with the model.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # pyright: ignore[reportMissingImports]

    if not isinstance(runner, GPUModelRunner):
        raise SettingsError(
            f"vLLM runs the model by {type(runner).__module__}.{type(runner).__qualname__}, which demur does not know; "
            "set VLLM_USE_V2_MODEL_RUNNER=0."
        )
    config = runner.vllm_config
    check_engine(config)
    lm = as_language_model(runner.get_model(), config)
    scheduler = config.scheduler_config
    rows = Rows(lm, options, scheduler.max_num_seqs, bool(scheduler.enable_chunked_prefill))
    for site in rows.sites:
        for_good(lm.block(site), _handler(rows, site))
    runner.execute_model = _keeping_count(runner, rows)
    runner._model_forward = _passing(runner, rows)
    return rows


def as_language_model(model: Any, config: Any) -> LanguageModel:
    """vLLM's model as the project holds one: its blocks by structure, its hash from its files.

    Raises:
        ModelError: there is no list of blocks, or the files cannot be read.
    """
    from vllm.tokenizers import cached_tokenizer_from_config  # pyright: ignore[reportMissingImports]

    about = config.model_config
    text = about.hf_text_config
    return LanguageModel(
        name=served_name(config),
        model=model,
        tokenizer=cached_tokenizer_from_config(about),
        blocks=find_blocks(model, text.num_hidden_layers),
        d_model=text.hidden_size,
        context=about.max_model_len,
        hash=checkpoint_hash(_folder(about.model, config.load_config.download_dir)),
    )


def served_name(config: Any) -> str:
    """What the server calls the model."""
    name = config.model_config.served_model_name or config.model_config.model
    return name if isinstance(name, str) else name[0]


def _folder(name: str, cache: str | None) -> Path:
    # Where vLLM has just read the weights from.
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, cache_dir=cache, allow_patterns=["*.json", "*.safetensors"]))


def _handler(rows: Rows, site: str) -> Callable[[Any], Any]:
    known = False

    def handler(output: Any) -> Any:
        nonlocal known
        # Looked at once, which is when vLLM measures its memory, before anybody is served.
        if not known and not (known := check_output(output, rows.lm.d_model)):
            raise ModelError(
                f"block {site} of {rows.lm.name} returns {type(output).__name__}, in which the residual stream cannot be "
                "found; expected `[tokens, d_model]`, or two such parts whose sum it is."
            )
        return rows.edit(site, output)

    return handler


def _keeping_count(runner: Any, rows: Rows) -> Callable[..., Any]:
    original = runner.execute_model

    @functools.wraps(original)
    @torch.inference_mode()
    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        rows.end(list(scheduled.finished_req_ids))
        for new in scheduled.scheduled_new_reqs:
            wish = ((new.sampling_params and new.sampling_params.extra_args) or {}).get("demur")
            if wish is not None and wish["steered"]:
                rows.join(new.req_id, new.prompt_token_ids, wish)
        rows.scheduled = scheduled.num_scheduled_tokens
        return original(scheduled, *args, **kwargs)

    return execute_model


def _passing(runner: Any, rows: Rows) -> Callable[..., Any]:
    original = runner._model_forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        # By now vLLM has put the requests into the order in which their tokens are packed.
        batch = runner.input_batch
        requests = batch.req_ids[: batch.num_reqs]
        starts = [int(n) for n in batch.num_computed_tokens_cpu[: len(requests)]]
        rows.begin(requests, [rows.scheduled[r] for r in requests], starts)
        try:
            return original(*args, **kwargs)
        finally:
            rows.done()

    return forward
