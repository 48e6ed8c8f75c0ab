"""Which of MLflow's store methods go to the real store, and what becomes of those that nothing is known of.

A method that the class defines itself is local. One of the lists below is asked of the real store, with its own
semantics. Any other one is refused: what a newer MLflow writes with it must not be lost silently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import NOT_IMPLEMENTED

__all__ = ["REGISTRY", "TRACKING", "delegating", "kinds"]

C = TypeVar("C", bound=type)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Of MLflow 3.10 to 3.17. Some are missing in the older ones.
TRACKING = _names(
    """
    add_dataset_to_experiments create_dataset delete_dataset delete_dataset_records delete_dataset_tag
    get_dataset get_dataset_experiment_ids remove_dataset_from_experiments search_datasets set_dataset_tags
    upsert_dataset_records delete_experiment_tag filter_active_experiment_ids
    restore_experiment search_experiments set_experiment_tag get_metric_history_bulk_interval
    get_metric_history_bulk_interval_from_steps restore_run search_logged_models search_runs
    set_model_versions_tags archive_traces batch_get_trace_infos batch_get_traces
    calculate_trace_filter_correlation create_assessment create_issue delete_assessment delete_trace_tag
    delete_traces deprecated_end_trace_v2 deprecated_start_trace_v2 find_completed_sessions get_assessment
    get_issue get_online_trace_details get_trace get_trace_info link_prompts_to_trace link_traces_to_run
    log_spans query_trace_metrics resolve_trace_archival_config search_issues search_traces set_trace_tag
    start_trace sum_gateway_trace_cost unlink_traces_from_run update_assessment update_issue delete_scorer
    get_active_online_scorers get_online_scoring_configs get_scorer list_scorer_versions list_scorers
    list_scorers_across_experiments register_scorer upsert_online_scoring_config add_items_to_review_queue
    create_label_schema create_review_queue delete_label_schema delete_review_queue get_label_schema
    get_label_schema_by_name get_or_create_user_queue get_review_queue get_review_queue_by_name
    list_label_schemas list_review_queue_items list_review_queues remove_items_from_review_queue
    set_review_queue_item_status update_label_schema update_review_queue add_guardrail_to_endpoint
    attach_model_to_endpoint create_budget_policy create_endpoint_binding create_gateway_endpoint
    create_gateway_guardrail create_gateway_model_definition create_gateway_secret delete_budget_policy
    delete_endpoint_binding delete_gateway_endpoint delete_gateway_endpoint_tag delete_gateway_guardrail
    delete_gateway_model_definition delete_gateway_secret detach_model_from_endpoint get_budget_policy
    get_gateway_endpoint get_gateway_guardrail get_gateway_model_definition get_secret_info list_budget_policies
    list_endpoint_bindings list_endpoint_guardrail_configs list_gateway_endpoints list_gateway_guardrails
    list_gateway_model_definitions list_secret_infos remove_guardrail_from_endpoint set_gateway_endpoint_tag
    update_budget_policy update_endpoint_guardrail_config update_gateway_endpoint
    update_gateway_model_definition update_gateway_secret create_mcp_access_endpoint create_mcp_server
    create_mcp_server_version delete_mcp_access_endpoint delete_mcp_server delete_mcp_server_alias
    delete_mcp_server_tag delete_mcp_server_version delete_mcp_server_version_tag get_latest_mcp_server_version
    get_mcp_access_endpoint get_mcp_server get_mcp_server_version get_mcp_server_version_by_alias
    get_mcp_server_versions_for_trace link_mcp_server_versions_to_trace search_mcp_access_endpoints
    search_mcp_server_versions search_mcp_servers set_mcp_server_alias set_mcp_server_tag
    set_mcp_server_version_tag update_mcp_access_endpoint update_mcp_server update_mcp_server_version
    """
)
REGISTRY = _names(
    """
    delete_model_version get_latest_versions get_model_version_by_alias
    search_model_versions search_registered_models transition_model_version_stage
    create_prompt create_prompt_version delete_prompt delete_prompt_alias delete_prompt_tag
    delete_prompt_version delete_prompt_version_tag get_prompt get_prompt_version get_prompt_version_by_alias
    link_prompt_version_to_model link_prompt_version_to_run link_prompts_to_trace search_prompt_versions
    search_prompts set_prompt_alias set_prompt_tag set_prompt_version_tag create_webhook delete_webhook
    get_webhook list_webhooks list_webhooks_by_event test_webhook update_webhook
    """
)
# What the abstract store itself makes out of other methods.
INHERITED = _names(
    """
    copy_model_version end_async_logging flush_async_logging log_spans_async shut_down_async_logging
    supports_trace_archival supports_workspaces
    """
)


def delegating(abstract: type, delegated: frozenset[str]) -> Callable[[C], C]:
    """Complete a class with the methods of MLflow's abstract store that it does not define.

    Args:
        abstract: MLflow's abstract store.
        delegated: Names of the methods that the real store answers, through the class's method ``ask``.
    """

    def complete(store: C) -> C:
        for name in sorted(delegated | _public(abstract)):
            if name in vars(store) or name in INHERITED:
                continue
            method = getattr(abstract, name, None)
            made = _delegate(name) if name in delegated else _refuse(name)
            setattr(store, name, functools.wraps(method)(made) if method is not None else made)
        store.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
        return store

    return complete


def kinds(store: type, abstract: type, delegated: frozenset[str]) -> dict[str, str]:
    """Return what becomes of each method of an abstract store: local, delegated, inherited or refused."""

    def kind(name: str) -> str:
        if name in delegated:
            return "delegated"
        if name in INHERITED:
            return "inherited"
        return "refused" if getattr(vars(store).get(name), "refused", False) else "local"

    return {name: kind(name) for name in sorted(_public(abstract))}


def _public(abstract: type) -> set[str]:
    return {name for name in dir(abstract) if not name.startswith("_") and callable(getattr(abstract, name))}


def _delegate(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.ask(name, *args, **kwargs)

    call.__name__ = name
    return call


def _refuse(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001 - any arguments
        raise MlflowException(
            f"this version of tracking-callbacks does not know MLflow's {name}; for that, use the tracking URI without "
            "'journal+', or a newer version",
            NOT_IMPLEMENTED,
        )

    call.__name__ = name
    call.refused = True  # type: ignore[attr-defined]
    return call
