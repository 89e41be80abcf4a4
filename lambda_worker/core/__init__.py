"""The pure executor core: no I/O, clock, thread, randomness or logging below this package.

Start reading at :mod:`lambda_worker.core.executor`.
"""
