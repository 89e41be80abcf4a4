"""The only module that knows how keys are called, in Python and (`LUA`) in the scripts.

====================================  =======  =============================================================
key                                   type     what
====================================  =======  =============================================================
``CLUSTER:leases``                    zset     of every live executor record: the end of its lease, store ms
``CLUSTER:events``                    stream   what executors publish, until the proxy has read it
``CLUSTER:ceiling``                   string   how many executors may live, since it was last changed
``CLUSTER:mark``                      string   server process and a token, by which the proxy knows that nothing is
                                               forgotten
``CLUSTER:notes``                     hash     what the proxy has noted for its successor
``CLUSTER:shard-map``                 hash     shard -> what became of it: ``gone``
``CLUSTER:lingering``                 zset     executors that linger: when each of them leaves, store ms
``CLUSTER:generation``                string   of executors: those of an older one do not linger
``CLUSTER:mail:NAME``                 list     what was sent to one of them (at most one item)
``CLUSTER:taken:NAME``                list     what it has taken
``CLUSTER:taken-back:NAME``           list     what was taken back from it
``CLUSTER:{JOB}:job``                 hash     ``opened``, ``cancelled``
``CLUSTER:{JOB}:executors``           set      executors that have, or had, a record (to find keys again)
``CLUSTER:{JOB}:record:EXECUTOR``     hash     ``attempt``, ``running``, ``starts``, ``assignment``,
                                               ``generation``, ``heard``, ``recipient`` of its mail, ``holder``,
                                               ``gave:EXECUTOR``
``CLUSTER:{JOB}:claims:EXECUTOR``     set      children that are this executor's to run
``CLUSTER:{JOB}:fan-in:CHILD``        hash     parent -> value, ``owner``, and ``held`` if it holds values
``CLUSTER:{JOB}:fan-ins``             set      children that have a fan-in (to find keys again)
``CLUSTER:{JOB}:done``                bitmap   children whose owner retired
``CLUSTER:{JOB}:segments``            hash     on each shard: segment number -> sealed segment
``CLUSTER:{JOB}:objects``             set      on each shard: the stripes that `close_job` removes
``CLUSTER:{JOB}:object:NAME[#I]``     list     on a shard: the frames of one stripe of a stored value
``CLUSTER:{JOB}:object:NAME``         hash     on a shard: input partition -> slice, of one output partition
                                               (NAME is ``JOB/shuffle/SHUFFLE/PARTITION``)
====================================  =======  =============================================================

The braces are a hash tag: were the metadata ever kept in a Redis Cluster, a job would stay on one node.
"""

from __future__ import annotations

LUA = """
local leases_key = KEYS[1] .. 'leases'
local events_key = KEYS[1] .. 'events'
local ceiling_key = KEYS[1] .. 'ceiling'
local lingering_key = KEYS[1] .. 'lingering'
local generation_key = KEYS[1] .. 'generation'
local function mail_key(what, name) return KEYS[1] .. what .. ':' .. name end
local function key_of(job, what) return KEYS[1] .. '{' .. job .. '}:' .. what end
local function lease_member(job, executor) return job .. '\\n' .. executor end
"""


class Keys:
    """Names the keys of one cluster.

    Examples
    --------
    >>> keys = Keys("demo")
    >>> keys.of_job("job-1", "done")
    'demo:{job-1}:done'
    >>> keys.of_object("job-1/7/a/1"), keys.of_object("job-1/7/a/1", 2)
    ('demo:{job-1}:object:job-1/7/a/1', 'demo:{job-1}:object:job-1/7/a/1#2')
    """

    def __init__(self, cluster: str) -> None:
        self.prefix = f"{cluster}:"
        self.leases = f"{cluster}:leases"
        self.events = f"{cluster}:events"
        self.ceiling = f"{cluster}:ceiling"
        self.lingering = f"{cluster}:lingering"
        self.mark = f"{cluster}:mark"
        self.notes = f"{cluster}:notes"
        self.shard_map = f"{cluster}:shard-map"

    def of_job(self, job: str, what: str) -> str:
        """Name a key of a job."""
        return f"{self.prefix}{{{job}}}:{what}"

    def of_mail(self, what: str, name: str) -> str:
        """Name a list of letters (``mail``, ``taken``, ``taken-back``) of an executor that lingers."""
        return f"{self.prefix}{what}:{name}"

    def of_object(self, name: str, stripe: int = 0) -> str:
        """Name the key of one stripe of a stored value."""
        return self.of_job(job_of(name), f"object:{stripe_name(name, stripe)}")

    def lease_member(self, job: str, executor: str) -> str:
        """Name an executor's entry among the leases."""
        return f"{job}\n{executor}"


def job_of(name: str) -> str:
    """Return the job that a stored value belongs to: the first part of its name."""
    return name.split("/", 1)[0]


def stripe_name(name: str, stripe: int) -> str:
    """Name one stripe of a stored value, as the job's set of objects lists it."""
    return f"{name}#{stripe}" if stripe else name
