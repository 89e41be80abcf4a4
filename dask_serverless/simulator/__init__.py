"""A whole cluster under virtual time: what is proved here by the thousand is the code that runs in Lambda.

`lambda_worker.core.executor.Executor`, its policy, the ledger (`dask_serverless.jobs`) and the supervisor are the real
ones. Around them, everything that takes time or can fail is a model that a seed drives. Pure: no clock, no thread, no
socket, no Dask; the same seed gives the same trace, wherever it runs.

Read `timeline` (time), `faults` (what goes wrong), `tier`, `sim_store`, `network` and `lambda_service` (what a cluster
stands on), `sandbox`, `driver`, `proxy` and `client` (who acts), `invariants` (what must hold), and `simulation` (all
of it together). `calculator` predicts what a workload takes.
How to use it: ``docs/simulation.md``.
"""
