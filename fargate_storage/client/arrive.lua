-- Fan-ins, events and retirement in one step. The promises are in `lambda_worker.ports.Store.arrive`.
--
-- A fan-in is a set of edges and an owner, never a count: an edge that is set twice is set once, and whoever makes
-- the set complete becomes the owner, for good. A repeated call therefore hears what the first one heard.
--
-- An edge without a value asks: its parent is held by the caller, who wins the child if all other edges are there,
-- and leaves no trace otherwise.
--
-- ARGV: header, events, then one value for each edge (empty: it asks).
-- Header: job, executor, attempt, lease_ms, ttl, retire (0/1), digest of this call, edges (child, parent, parents, ...),
--         succession (executor, attempt, starts, assignment, events; empty: none),
--         lingering (name, milliseconds; 0 ms or empty: it does not linger), who speaks,
--         how urgent it is (1: take it from the reserve, 2: and from beyond)
-- Reply: standing, retired (0/1), {{child, verdict, parent, value, parent, value, ... (with 'yours')}, ...}

local header = cmsgpack.unpack(ARGV[1])
local job, executor, attempt, lease_ms, ttl = header[1], header[2], header[3], header[4], header[5]
local retire, digest, edges, succession = header[6] == 1, header[7], header[8], header[9]
local events = ARGV[2]

-- A full server must still let executors go on and go: after a first write that needs no memory, the rest is not
-- refused. Edges stay until their child's owner retires, so there is an end to them: a quarter of the limit, and not
-- less than 64 MiB, since messages that are on their way count, too.
local urgency = (#edges == 0 and events == '') and 2 or header[12]
if urgency == 1 then
  local memory = redis.call('INFO', 'memory')
  local used = tonumber(string.match(memory, 'used_memory:(%d+)'))
  local limit = tonumber(string.match(memory, '\nmaxmemory:(%d+)'))
  if used < limit + math.max(limit / 4, 67108864) then urgency = 2 end
end
if urgency == 2 then redis.call('EXPIRE', leases_key, ttl) end

local standing = enter(job, executor, attempt, header[11])
if standing ~= 'ok' then return {standing, 0, {}} end
renew(job, executor, lease_ms, ttl)

local record = key_of(job, 'record:' .. executor)
local claims = key_of(job, 'claims:' .. executor)
local done = key_of(job, 'done')
local fan_ins = key_of(job, 'fan-ins')
local fan_in = key_of(job, 'fan-in:')

local children, verdict, degree, added, held = {}, {}, {}, {}, {}
for i = 1, #edges, 3 do
  local child = edges[i]
  if not verdict[child] then
    children[#children + 1] = child
    degree[child], added[child], held[child] = edges[i + 2], 0, 0
    if redis.call('GETBIT', done, child) == 1 then
      verdict[child] = 'done'
    else
      local owner = redis.call('HGET', fan_in .. child, 'owner')
      verdict[child] = owner and (owner == executor and 'yours' or 'taken') or 'wait'
    end
  end
  -- Once there is an owner the values are settled: it must hear the same ones again.
  if verdict[child] == 'wait' then
    local value = ARGV[2 + (i + 2) / 3]
    if value == '' then
      held[child] = held[child] + 1 - redis.call('HEXISTS', fan_in .. child, edges[i + 1])
    else
      added[child] = added[child] + redis.call('HSETNX', fan_in .. child, edges[i + 1], value)
    end
  end
end

local answers, won = {}, false
for i, child in ipairs(children) do
  local key = fan_in .. child
  if verdict[child] == 'wait' then
    local present = redis.call('HLEN', key)
    if present > 0 and present == added[child] then redis.call('SADD', fan_ins, child) end
    if present + held[child] >= degree[child] then
      redis.call('HSET', key, 'owner', executor)
      if held[child] > 0 then redis.call('HSET', key, 'held', 1) end
      verdict[child] = 'yours'
    end
    redis.call('EXPIRE', key, ttl)
  end
  if verdict[child] == 'yours' then
    won = true
    redis.call('SADD', claims, child)
    answers[i] = {child, 'yours', redis.call('HGETALL', key)}
  else
    answers[i] = {child, verdict[child]}
  end
end

-- Events are appended, which repeats if the call repeats; so the last calls are remembered by their digests. Several,
-- because an executor may call from several threads.
if events ~= '' then
  local heard = redis.call('HGET', record, 'heard') or ''
  if not string.find(heard, digest, 1, true) then
    redis.call('XADD', events_key, '*', 'job', job, 'executor', executor, 'attempt', attempt, 'events', events)
    redis.call('EXPIRE', events_key, ttl)
    redis.call('HSET', record, 'heard', string.sub(heard .. digest, -16 * #digest))
  end
end

local retired = retire and not won
if retired then
  for _, child in ipairs(redis.call('SMEMBERS', claims)) do
    redis.call('SETBIT', done, child, 1)
    redis.call('UNLINK', fan_in .. child)
    redis.call('SREM', fan_ins, child)
  end
  local lingers = redis.call('HGET', record, 'generation') == (redis.call('GET', generation_key) or '')
  redis.call('UNLINK', record, claims)
  redis.call('SREM', key_of(job, 'executors'), executor)
  redis.call('ZREM', leases_key, lease_member(job, executor))
  local successor = succession[1]
  if successor then
    create_record(job, successor, succession[2], succession[3], succession[4], lease_ms, ttl)
    redis.call('XADD', events_key, '*', 'job', job, 'executor', executor, 'attempt', attempt, 'events', succession[5])
  end
  redis.call('XADD', events_key, '*', 'job', job, 'executor', executor, 'attempt', attempt, 'events', '')
  redis.call('EXPIRE', events_key, ttl)
  -- In this very step: whoever takes the place that has become free finds out that somebody lingers there.
  local lingering = header[10]
  if lingering[1] then
    redis.call('UNLINK', mail_key('taken', lingering[1]))
    if lingering[2] > 0 and lingers then
      redis.call('ZADD', lingering_key, now_ms + lingering[2], lingering[1])
      redis.call('EXPIRE', lingering_key, ttl)
    end
  end
end
-- Keys that this call made have no time to live yet.
redis.call('EXPIRE', claims, ttl)
redis.call('EXPIRE', fan_ins, ttl)
redis.call('EXPIRE', done, ttl)
return {'ok', retired and 1 or 0, answers}
