-- What all scripts share. Before it comes `keys.LUA`; behind it, one script.
--
-- Time is the server's own. A script is atomic; Redis checks "out of memory" only before its first write, so a step
-- is refused as a whole or done as a whole.

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Whether an attempt may go on. A newer attempt than the record knows is believed, and fences the older one: only
-- the supervisor hands out attempts, and an invocation may overtake the step that announces it.
-- Lambda may deliver an invocation twice: of several sandboxes that speak for one attempt, the first one holds it.
local function enter(job, executor, attempt, holder)
  local state = redis.call('HMGET', key_of(job, 'job'), 'opened', 'cancelled')
  if state[2] then return 'cancelled' end
  local record = key_of(job, 'record:' .. executor)
  local fields = redis.call('HMGET', record, 'attempt', 'holder')
  local known, held = tonumber(fields[1] or nil), fields[2] or ''
  if not state[1] or not known or known > attempt then return 'fenced' end
  if known < attempt then
    redis.call('HSET', record, 'attempt', attempt, 'running', -1, 'holder', holder)
  elseif held == '' then
    if holder ~= '' then redis.call('HSET', record, 'holder', holder) end
  elseif holder ~= '' and held ~= holder then
    return 'fenced'
  end
  return 'ok'
end

-- Renew a lease, and the time to live of everything that the job still needs.
local function renew(job, executor, lease_ms, ttl)
  redis.call('ZADD', leases_key, now_ms + lease_ms, lease_member(job, executor))
  redis.call('EXPIRE', leases_key, ttl)
  for _, what in ipairs({'job', 'executors', 'fan-ins', 'done', 'record:' .. executor, 'claims:' .. executor}) do
    redis.call('EXPIRE', key_of(job, what), ttl)
  end
end

-- Create the record of an executor, with its lease.
local function create_record(job, executor, attempt, starts, assignment, lease_ms, ttl)
  local record = key_of(job, 'record:' .. executor)
  redis.call('HSET', record, 'attempt', attempt, 'running', -1, 'starts', starts, 'assignment', assignment,
    'generation', redis.call('GET', generation_key) or '')
  redis.call('SADD', key_of(job, 'executors'), executor)
  renew(job, executor, lease_ms, ttl)
end

local function send(mail, lease_ms, name)
  redis.call('RPUSH', mail_key('mail', name), mail)
  redis.call('PEXPIRE', mail_key('mail', name), lease_ms) -- as long as its record lives untaken
  return mail ~= '' and name or ''
end

-- Send mail to the executor that came last to linger for it; return its name, or '' if there is none. Whoever is sent
-- empty mail goes: somebody else is invoked instead, and needs the place.
local function post(mail, lease_ms)
  while true do
    local latest = redis.call('ZPOPMAX', lingering_key)
    if not latest[1] then return '' end
    if tonumber(latest[2]) > now_ms then return send(mail, lease_ms, latest[1]) end
  end
end

-- Remove up to `limit` of a job's records with their leases; return how many are left.
local function forget_executors(job, limit)
  for _, executor in ipairs(redis.call('SPOP', key_of(job, 'executors'), limit)) do
    redis.call('UNLINK', key_of(job, 'record:' .. executor), key_of(job, 'claims:' .. executor))
    redis.call('ZREM', leases_key, lease_member(job, executor))
  end
  return redis.call('SCARD', key_of(job, 'executors'))
end
