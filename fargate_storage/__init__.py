"""The storage tier: what crosses executors, kept in Redis.

`fargate_storage.client` ships with the Lambda worker and is all that executors and the proxy need to use the tier;
`fargate_storage.service` starts and watches the servers themselves.
"""
