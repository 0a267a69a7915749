-- Version 2. Memory blocks; `label` repeats what is in `body`, for a filter.

CREATE TABLE memory_blocks (
    tenant text NOT NULL,
    memory_block_id text COLLATE "C" NOT NULL,
    label text NOT NULL,
    codec integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (tenant, memory_block_id)
) WITH (fillfactor = 70);
