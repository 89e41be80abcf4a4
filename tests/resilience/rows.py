"""The fault table: what may go wrong, and what is promised then. `pytest.mark.fault` says which rows a test shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A fault, and what is promised.

    Parameters
    ----------
    fault
        What goes wrong.
    promise
        What happens then.
    missing
        What no test shows yet, and why; empty: nothing that we know of.
    """

    fault: str
    promise: str
    missing: str = ""


#: By number; `pytest.mark.fault(17)` means the row 17 of these.
ROWS: dict[int, Row] = {
    1: Row(
        "An executor dies before its first task",
        "It is invoked again. One that never gets to a task is given up, with what it died of",
    ),
    2: Row("An executor dies in a task", "Another one goes on from what the store knows of it"),
    3: Row(
        "An executor dies between computing a value and storing it",
        "The task runs again: tasks run at least once, and one result is accepted",
    ),
    4: Row(
        "An executor dies between storing a value and telling of it",
        "The next attempt starts where the store's records say; what it makes twice is accepted once",
    ),
    5: Row(
        "An executor dies between telling of a value and invoking others",
        "Whoever it gave work to has a record, whose lease runs out; then they are invoked",
    ),
    6: Row("Lambda delivers an invocation twice", "The first one holds the attempt; the other one hears so and ends"),
    7: Row("An invocation, or a step, comes very late", "Its attempt is fenced: it changes nothing"),
    8: Row("The last two inputs of a task are done at the same instant", "Exactly one executor is given the task"),
    9: Row(
        "Lambda refuses invocations (429)",
        "They are sent again, at a pace that adapts; no task is blamed. In the end there is an error that says so",
    ),
    10: Row(
        "An invocation fails in the service, or its connection breaks, and nobody knows whether it was accepted",
        "It is sent again for ten seconds, under the same attempt: twice is as good as once",
    ),
    11: Row(
        "A task runs out of Lambda's time",
        "It is tried once more, then it fails by name, with the limit and what to do",
    ),
    12: Row("Lambda's time limit is near, and much is left", "The executor hands the rest to a successor"),
    13: Row(
        "A task runs out of memory",
        "It is tried once more in the next larger function, then it fails by name, with the limit",
    ),
    14: Row(
        "A task kills every executor",
        "It is blamed after the allowed failures (a `KilledWorker` that names it); others go on",
    ),
    15: Row(
        "A task raises; its exception cannot be pickled",
        "Type, message and traceback are the user's; what cannot be pickled is told in words. Never a hang",
    ),
    16: Row("A result cannot be pickled", "An error that names the task and the type, without a second try"),
    17: Row(
        "A data server dies and comes back empty",
        "What is lost and still needed is made again, and nothing else; the rest is written again",
    ),
    18: Row(
        "A server is gone for good",
        "The cluster goes on with the data servers that are left, and makes again what is needed. If none is, or it is "
        "the metadata server: an error that names it, in bounded time; nothing hangs",
    ),
    19: Row(
        "A failover forgets the last writes",
        "Values: as if those were lost, they are made again. Metadata: as if all were lost (row 22), since nothing "
        "tells what is",
    ),
    20: Row(
        "A storage server is full",
        "Values and slices of shuffles overflow to a disk, and small values to the data servers. Without an overflow, "
        "or when that is full too: an error that names the task, the limit and what to do. Executors can still say "
        "what they have done, beat, retire and be cancelled",
        "there is no overflow to S3 yet",
    ),
    21: Row(
        "A data server evicts values by itself (another `maxmemory-policy`)",
        "Local servers are started without eviction. What is evicted nevertheless is lost, and made again",
    ),
    22: Row(
        "The store's records of a job are gone, its values are not",
        "What was under way begins again under other names, with the keys that are finished; whoever was at work is "
        "fenced. Too often, and it fails by name. A persistent cluster that nobody owned begins anew, and says so",
        "records are not rebuilt from values: what lies between finished keys runs again",
    ),
    23: Row("Values are gone, the store's records are not", "Who reads one makes it again"),
    24: Row(
        "Scattered data, or a published result, is lost in the tier",
        "Published results and a persistent cluster's scattered data are read from their place in the overflow. Other "
        "scattered data is copied there again from where it lies; what is nowhere any more is an error that names its "
        "key",
    ),
    25: Row(
        "The scheduler's process ends",
        "A persistent cluster (`persistent=True`) goes on and is taken over by its name: finished keys are served, the "
        "rest goes on; scattered data is in the overflow. Any other ends with the process that made it",
    ),
    26: Row(
        "A client goes away",
        "If it closes, as with Dask: what nobody else wants is cancelled. If it falls silent, nothing is, for 30 s: "
        "who submits the same graph finds it done or under way. `fire_and_forget` goes on",
    ),
    27: Row("A client cancels", "Tasks that have not begun never run; what runs changes nothing any more"),
    28: Row(
        "The storage tier cannot be reached",
        "The proxy waits for a minute (`serverless.storage.patience`), then all work fails by name. Executors wait for "
        "some seconds, then they end, and are tried again; what was asked for before is not done twice",
    ),
    29: Row("The way to the storage tier is slow", "Slower, but nobody is taken for dead"),
    30: Row(
        "Clocks differ, or jump",
        "Leases go by the store's clock, and by durations",
    ),
    31: Row(
        "Bytes change on the way or in the store",
        "What carries a wrong tag is never decoded: a value is lost and made again, a broken reply is asked for again",
    ),
    32: Row(
        "Client, scheduler and executors have different versions",
        "What could not be read is refused, with both versions and what to do",
    ),
    33: Row("A package is missing in executors", "`ModuleNotFoundError` at the task, without a second try"),
    34: Row("A giant graph", "Linear in time and memory, nothing recurses"),
    35: Row(
        "A huge value",
        "It is cut into stripes; above the limit it goes to the overflow, or is refused, with task, size and limit",
    ),
    36: Row("Very many small results", "They are read in batches, each in one round trip"),
    37: Row("One value is read by everybody", "Each warm process reads it once"),
    38: Row(
        "One executor is much slower than the others",
        "The answer is right, and it comes when that one is done",
    ),
    39: Row("Very many cold starts at once", "Starting is not taken for silence; who waits begins in turn"),
    40: Row("Failure after failure", "Attempts are counted: there is an end, and an error that says so"),
    41: Row(
        "Somebody without credentials connects",
        "Refused by scheduler (TLS), storage servers (password, private directory) and local Lambda (signature). "
        "Nothing listens beyond loopback",
    ),
    42: Row(
        "A malicious pickle is put into the store or an invocation", "It is not unpickled: its tag is checked first"
    ),
    43: Row(
        "A deployment that is half there",
        "`dask serverless doctor` names what is missing, broken or left, whose fault it is and what to do. `destroy` "
        "removes what carries the deployment's tags, and nothing else; whatever stops it, the next run goes on",
    ),
    44: Row(
        "AWS credentials expire in the middle of a run",
        "They are renewed where they can be, also keys in a file that somebody replaces. Otherwise, within some "
        "seconds, an error of their own (`CredentialsRefused`) says so and what to do; with new ones, work goes on",
    ),
    45: Row(
        "A storage server accepts no more connections",
        "Executors try again for some seconds, then they end and are tried again; the proxy waits for a minute",
    ),
    46: Row(
        "The disk is full",
        "Executors go on without their log, and without the note of which task they run. A value that would overflow "
        "there is an error that names the task, the place and how much of it is used; others go on",
    ),
    47: Row(
        "Two clients, or clusters, use the same keys",
        "One key has one value; clusters do not see one another's",
    ),
    48: Row(
        "An impure task runs again after somebody has used its first value",
        "Documented: tasks run at least once, and those who have read the first value keep it",
    ),
}
