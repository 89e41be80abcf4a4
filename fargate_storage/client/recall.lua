-- What an executor had when it died, or has. ARGV: job, executor, whether it is alive (0/1).
-- Who was taken for dead is fenced from now on: nobody is called '-'.
-- What was won by asking needs values that died with the attempt: it has no owner any more. Of who is alive, it is
-- left out, and nothing changes.
-- Reply: the record's fields, {{child, parent, value, parent, value, ...}, ...} for what it has claimed; {} if unknown.

local job, executor, alive = ARGV[1], ARGV[2], ARGV[3] == '1'
local record = redis.call('HGETALL', key_of(job, 'record:' .. executor))
if #record == 0 then return {} end
-- 1. It is taken for dead; 2. its claims are read; 3. it lives, and wins another; 4. the next attempt, which does not know
-- of that, gives the way there away, hears no more of it and retires: the child is lost. So it is fenced before 2.
if not alive then
  redis.call('HDEL', key_of(job, 'record:' .. executor), 'holder') -- must pass on a full server: see arrive.lua
  redis.call('HSET', key_of(job, 'record:' .. executor), 'holder', '-')
end
local claims = {}
for _, child in ipairs(redis.call('SMEMBERS', key_of(job, 'claims:' .. executor))) do
  local fan_in = key_of(job, 'fan-in:' .. child)
  if redis.call('HEXISTS', fan_in, 'held') == 1 then
    if not alive then
      redis.call('HDEL', fan_in, 'owner', 'held')
      redis.call('SREM', key_of(job, 'claims:' .. executor), child)
    end
  else
    claims[#claims + 1] = {tonumber(child), redis.call('HGETALL', fan_in)}
  end
end
return {record, claims}
