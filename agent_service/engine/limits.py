"""Every bound of the service in one value, with its default. Shown by GetServerInfo."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes are bytes of UTF-8 unless said otherwise. 64 KiB above a MiB leave room for the JSON around a text.

    `max_images_bytes` leaves room in a response for the text of a message, which stands there twice beside images. What
    memory blocks hold counts in Unicode code points.
    """

    max_request_bytes: int = 4 * MIB
    max_response_bytes: int = 3 * MIB
    max_client_tools: int = 128
    max_tool_schema_bytes: int = 64 * KIB
    max_tool_schema_depth: int = 32
    max_tool_arguments_bytes: int = MIB + 64 * KIB
    max_model_response_arguments_bytes: int = 2 * MIB + 128 * KIB
    max_tool_return_bytes: int = MIB + 64 * KIB
    max_server_tool_result_bytes: int = 64 * KIB
    max_input_bytes: int = MIB + 64 * KIB
    max_page_size: int = 1000
    max_labels: int = 32
    default_max_steps: int = 50
    max_consecutive_invalid_steps: int = 3
    max_step_restarts: int = 2
    max_queued_runs: int = 16
    max_image_bytes: int = 3 * MIB // 2
    max_images_per_message: int = 16
    max_images_bytes: int = 7 * MIB // 4
    max_image_url_bytes: int = 8 * KIB
    http_image_urls: bool = False
    max_invalid_answers: int = 3
    max_tool_rules: int = 128
    max_parallel_tool_calls: int = 8
    max_memory_agents: int = 16
    max_memory_part_bytes: int = 64 * KIB
    default_memory_block_limit: int = 5000
    max_memory_block_limit: int = 100_000
    max_memory_blocks: int = 32
    max_memory_description_bytes: int = 4 * KIB
    context_window_tokens: int = 0
    max_summary_prompt_bytes: int = 64 * KIB
    max_parts: int = 256
    max_input_messages: int = 1024
    max_answers: int = 1024
    max_tool_return_total_bytes: int = 2 * MIB + 128 * KIB
    watcher_queue_events: int = 4096
    context_cache_bytes: int = 64 * MIB
