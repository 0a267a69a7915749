-- Version 4. Memory blocks; `label` repeats what is in `body`, for a filter.

CREATE TABLE memory_blocks (
    tenant TEXT NOT NULL,
    memory_block_id TEXT NOT NULL,
    label TEXT NOT NULL,
    codec INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, memory_block_id)
) STRICT;
