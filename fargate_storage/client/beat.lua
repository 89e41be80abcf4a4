-- Renew leases. ARGV[1]: lease_ms, ttl, runs (job, executor, attempt, running, ...), who speaks.
-- Reply: a standing for each run.

local header = cmsgpack.unpack(ARGV[1])
local lease_ms, ttl, runs = header[1], header[2], header[3]
redis.call('EXPIRE', leases_key, ttl) -- beats must pass on a full server: see arrive.lua
local standings = {}
for i = 1, #runs, 4 do
  local job, executor, attempt = runs[i], runs[i + 1], runs[i + 2]
  local standing = enter(job, executor, attempt, header[4])
  if standing == 'ok' then
    redis.call('HSET', key_of(job, 'record:' .. executor), 'running', runs[i + 3])
    renew(job, executor, lease_ms, ttl)
  end
  standings[#standings + 1] = standing
end
return standings
