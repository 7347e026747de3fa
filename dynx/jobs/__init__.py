"""Answer the rows of many files, on one machine or a cluster, so that a run can be killed at any time and repeated.

`inputs` cuts files into shards, `store` keeps what is done, `worker` answers a shard and writes its part, `driver` hands shards
to the workers of a pool: processes of this machine (`local`) or actors of a Ray cluster (`ray`). `promise` certifies and audits
over the whole job. `functions` answer rows for other programs too: `datasets.map`, `ray.data.Dataset.map_batches`.
"""
