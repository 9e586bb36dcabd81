"""What of vLLM's settings and of our policies goes together; what does not is refused before anybody is served."""

from collections.abc import Iterable
from typing import Any

from demur.errors import PolicyError, SettingsError
from demur.records import Policy


def check_engine(config: Any) -> None:
    """Raises SettingsError where vLLM is set up (a `VllmConfig`) in a way in which a policy would not hold."""
    parallel = config.parallel_config
    found = [
        (config.speculative_config is not None, "decodes speculatively", "leave --speculative-config out"),
        (parallel.pipeline_parallel_size > 1, "cuts the model into stages", "leave --pipeline-parallel-size out"),
        (parallel.data_parallel_size > 1, "runs several engines", "start one server for each"),
        (
            getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "shares a prompt's tokens out over processes",
            "leave --prefill-context-parallel-size out",
        ),
        (getattr(parallel, "enable_dbo", False), "runs a batch in halves", "leave --enable-dbo out"),
        (
            config.kv_transfer_config is not None,
            "takes over keys and values of prompts that no gate has read",
            "leave --kv-transfer-config out",
        ),
        (config.model_config.runner_type != "generate", "does not generate", "serve a model that does"),
        (
            getattr(config, "use_v2_model_runner", False),
            "uses its model runner V2, which demur does not know",
            "set VLLM_USE_V2_MODEL_RUNNER=0",
        ),
        (
            getattr(config.compilation_config.mode, "name", "") != "NONE",
            "compiles the model, past which no policy sees",
            "give --enforce-eager",
        ),
    ]
    for holds, what, mend in found:
        if holds:
            raise SettingsError(f"vLLM {what}, which steering does not support; {mend}.")


def check_policies(policies: Iterable[Policy], chunked: bool) -> None:
    """Raises PolicyError for a policy that vLLM cannot be made to follow; `chunked`: prompts may be read in pieces."""
    for policy in policies:
        if policy.canned or policy.system:
            what = "answers with a fixed text" if policy.canned else "puts a system prompt before conversations"
            raise PolicyError(
                f"policy {policy.name} {what}, which a plug-in of vLLM cannot; serve it with --engine demur."
            )
        if policy.gate is not None and policy.gate.guards:
            raise PolicyError(
                f"policy {policy.name} asks a guard model, for which a plug-in of vLLM has no room; serve it with "
                "--engine demur."
            )
        if chunked and policy.gate is not None and any(i.positions != "reply" for i in policy.interventions):
            raise PolicyError(
                f"policy {policy.name} edits the prompt when its gate opens, which has to be read as a whole before; "
                "start vLLM with --no-enable-chunked-prefill."
            )
