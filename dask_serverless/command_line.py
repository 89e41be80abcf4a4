"""``dask serverless ...`` on the command line."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from dask_serverless.config import Settings
from dask_serverless.deployment.account import Account
from dask_serverless.deployment.findings import condition_of, examine
from dask_serverless.deployment.manifest import DEFAULT_NAME, manifest
from dask_serverless.deployment.removal import SECONDS_MAX, destroy, planned
from dask_serverless.simulate import BATCH_SEEDS, check_classes, commit, replay_line, simulate, simulate_many
from dask_serverless.simulator.calculator import predict
from dask_serverless.simulator.clusters import ours, wukong
from dask_serverless.simulator.shapes import chains, experienced, gemm, svd1, svd2, tree, tsqr
from dask_serverless.simulator.workload import Workload
from lambda_worker.core.errors import PlatformError

#: Block algorithms, each with a size and the rows of a block that Wukong's evaluation had.
SIZES: dict[str, tuple[Callable[..., Workload], int, int]] = {
    "gemm": (gemm, 10_000, 2_000),
    "tsqr": (tsqr, 4_194_304, 16_384),
    "svd1": (svd1, 4_096_000, 10_000),
    "svd2": (svd2, 50_000, 5_000),
}

#: It is said how far many simulations have come every so many seeds.
PROGRESS_SEEDS = 1_000


@click.group(name="serverless")
def serverless() -> None:
    """Dask graphs executed by Lambda functions."""


def _classes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    try:
        return check_classes(name for name in value.split(",") if name not in ("", "none"))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@serverless.command(name="simulate")
@click.option("--seed", type=int, help="Run this one, and tell its story.")
@click.option("--seeds", type=click.IntRange(min=1), default=200, show_default=True, help="How many to run.")
@click.option("--first", type=int, default=0, show_default=True, help="The first of them.")
@click.option(
    "--faults", "among", callback=_classes, help="Only these classes of faults, with commas between ('none')."
)
@click.option("--share", type=click.FloatRange(0, 1), help="The chance of each class of faults.")
@click.option("--processes", type=click.IntRange(min=1), help="How many cores to use (all of them).")
@click.option("--commit", "seen", help="Where the failure was seen that is to be seen again.")
def simulate_command(
    seed: int | None,
    seeds: int,
    first: int,
    among: tuple[str, ...] | None,
    share: float | None,
    processes: int | None,
    seen: str | None,
) -> None:
    """Run a cluster under virtual time while things go wrong, and check that no promise is broken.

    The real executor, ledger and supervisor; modelled servers, Lambdas and networks. A failure is named by its
    seed, which gives the same run again, wherever it runs.
    """
    here = commit()
    if seen is not None and seen != here:
        click.echo(f"note: this is {here}, the failure was seen at {seen}: the same seed may run differently")
    if seed is not None:
        outcome = simulate(seed, among, share)
        for line in outcome.story:
            click.echo(line)
        click.echo(f"{outcome}\n{outcome.options}\nreplay: {replay_line(seed, among, share)}")
        raise SystemExit(outcome.violation is not None)
    began = time.perf_counter()
    failed = steps = 0
    for done, outcome in enumerate(simulate_many(range(first, first + seeds), among, share, processes)):
        steps += outcome.steps
        if done and done % PROGRESS_SEEDS == 0:
            so_far = time.perf_counter() - began
            click.echo(f"{done:,} of {seeds:,} seeds: {failed} failed, {so_far:.0f} s", err=True)
        if outcome.violation is not None:
            failed += 1
            click.echo(f"{outcome}\nreplay: {replay_line(outcome.seed, among, share)}")
    seconds = time.perf_counter() - began
    cores = min(processes or os.cpu_count() or 1, -(-seeds // BATCH_SEEDS))
    click.echo(
        f"{seeds} seeds from {first} at {here}: {failed} failed; {steps:,} steps in {seconds:.1f} s on {cores} cores"
    )
    raise SystemExit(failed > 0)


@serverless.command(name="predict")
@click.argument("shape", type=click.Choice(["tree", "chains", *SIZES]))
@click.option("--size", type=click.IntRange(min=1), help="Numbers to add, chains, or rows of a matrix.")
@click.option("--length", type=click.IntRange(min=1), default=10, show_default=True, help="Of each chain.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=0.1, show_default=True, help="Of each task (tree, chains)."
)
@click.option(
    "--nbytes", type=click.IntRange(min=1), default=30, show_default=True, help="Of each value (tree, chains)."
)
@click.option("--chunk", type=click.IntRange(min=1), help="Rows of a block (matrices; default: as Wukong had them).")
@click.option("--executors", type=click.IntRange(min=1), default=1000, show_default=True, help="At most.")
@click.option("--shards", type=click.IntRange(min=1), help="Servers for values (4; as Wukong: 75).")
@click.option("--as-wukong", is_flag=True, help="Decide as Wukong does.")
def predict_command(
    shape: str,
    size: int | None,
    length: int,
    seconds: float,
    nbytes: int,
    chunk: int | None,
    executors: int,
    shards: int | None,
    as_wukong: bool,
) -> None:
    """Predict what a workload takes in AWS: time, invocations, bytes and money.

    Shapes: a tree reduction; chains; the block algorithms of Wukong's evaluation: product of square matrices (gemm),
    QR and SVD of tall and skinny ones (tsqr, svd1), approximate SVD of a square one (svd2). With warm sandboxes of
    3 GiB. What else is assumed, and how well it fits what was measured: docs/simulation.md. For a collection:
    dask_serverless.predict.
    """
    if shape == "tree":
        work = tree(size or 1024, seconds, nbytes)
    elif shape == "chains":
        work = chains(size or 1024, length, seconds, nbytes)
    else:
        make, usual_size, usual_chunk = SIZES[shape]
        work = make(size or usual_size, chunk=chunk or usual_chunk)
    cluster = wukong(executors, shards or 75) if as_wukong else ours(executors, shards or 4)
    click.echo(predict(work if as_wukong else experienced(work), cluster))


def _of_a_deployment(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--endpoint-url", help="Where AWS is, if not at Amazon (LocalStack, moto)."),
        click.option("--region", help="The AWS region (default: as configured for AWS)."),
        click.option("--name", default=DEFAULT_NAME, show_default=True, help="What the deployment is called."),
    ):
        command = option(command)
    return command


def _in_account(
    work: Callable[[Account], Awaitable[None]], name: str, region: str | None, endpoint_url: str | None
) -> None:
    """Do something in an account; what keeps it from being done is an exit status of its own."""

    async def run() -> None:
        async with Account(name, region, endpoint_url) as account:
            await work(account)

    try:
        asyncio.run(run())
    except PlatformError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None


def _tell_unknown(arns: Sequence[str]) -> None:
    for arn in arns:
        click.echo(f"carries this deployment's tags, but is of a kind not known here (or gone already): {arn}")


@serverless.command(name="doctor")
@_of_a_deployment
def doctor_command(**where: Any) -> None:
    """Say what is wrong with a deployment in AWS: what is missing or broken, whose fault that is and what to do.

    Changes nothing. The exit status is 0 if the deployment is complete, 1 if something is wrong or nothing is there,
    and 2 if it could not be looked at.
    """

    async def look(account: Account) -> None:
        inventory = await account.inventory()
        pieces = manifest(len(Settings.load().function_classes))
        findings = examine(inventory, pieces)
        click.echo(f"deployment {account.name!r}: {condition_of(inventory, pieces)}, {len(findings)} finding(s)")
        for each in findings:
            click.echo(each)
        _tell_unknown(inventory.unknown)
        if findings:
            raise SystemExit(1)

    _in_account(look, **where)


@serverless.command(name="destroy")
@_of_a_deployment
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--minutes", type=click.FloatRange(min=0), default=SECONDS_MAX / 60, show_default=True, help="It may take so long."
)
def destroy_command(dry_run: bool, yes: bool, minutes: float, **where: Any) -> None:
    """Remove a deployment from AWS, with all that is stored in it.

    Removes the CloudFormation stack, then what that has left behind, if it carries this deployment's tags. Whatever
    stops it, it can be run again, and goes on from there. The exit status is 0 if nothing is left, also if nothing was
    there; 1 if you say no; 2 if something could not be removed.
    """

    async def remove(account: Account) -> None:
        plan, unknown = await planned(account)
        if not plan:
            _tell_unknown(unknown)
            click.echo(f"deployment {account.name!r}: nothing {'else ' if unknown else ''}is there")
            return
        click.echo("\n  ".join([f"deployment {account.name!r}, to be removed:", *plan]))
        if dry_run:
            return
        if not yes:
            click.confirm("Remove all of this, with what is stored in it?", abort=True)
        left = await destroy(account, click.echo, minutes * 60)
        _tell_unknown(left.unknown)
        click.echo(f"deployment {account.name!r}: nothing {'else ' if left.unknown else ''}is left")

    _in_account(remove, **where)
