-- Cancel a job. ARGV: job, ttl, limit. Reply: how many records are left: call again until there are none.
-- A job that is not open stays unknown, so that a late cancel leaves no key behind.

local job = ARGV[1]
local key = key_of(job, 'job')
redis.call('EXPIRE', leases_key, ARGV[2]) -- must pass on a full server: see arrive.lua
if redis.call('EXISTS', key) == 0 then return 0 end
redis.call('HSET', key, 'cancelled', 1)
redis.call('EXPIRE', key, ARGV[2])
return forget_executors(job, tonumber(ARGV[3]))
