-- Create the records of executors: for the proxy (`admit`) and for an executor that gives work away (`delegate`).
-- The promises are in `lambda_worker.ports`.
--
-- ARGV[1]: job, executor, attempt of the giver ('' for the proxy), lease_ms, ttl, ceiling (-1: none),
--          records {{job, executor, attempt, starts, assignment, mail, who had better get it}, ...}, whether their jobs are opened along (0/1),
--          who speaks
-- Reply: for each of the records, from the front, that exists now: who was sent its mail ('': nobody).

local header = cmsgpack.unpack(ARGV[1])
local giver_job, giver, giver_attempt = header[1], header[2], header[3]
local lease_ms, ttl, ceiling, records = header[4], header[5], header[6], header[7]

-- What the cluster was last told wins over what the caller was told when it began.
local latest = tonumber(redis.call('GET', ceiling_key) or nil)
if ceiling < 0 then
  ceiling = math.huge
elseif latest and (giver ~= '' or latest < ceiling) then
  ceiling = latest
end

local giver_record
if giver ~= '' then
  if enter(giver_job, giver, giver_attempt, header[9]) ~= 'ok' then return {} end
  renew(giver_job, giver, lease_ms, ttl)
  giver_record = key_of(giver_job, 'record:' .. giver)
end

-- Those who linger and have what somebody is given are for that one: whoever else came first would read all of it
-- elsewhere, and so would that one.
local reserved = {}
for _, item in ipairs(records) do
  local mail, preferred = item[6], item[7]
  local until_ms = mail ~= '' and preferred ~= '' and tonumber(redis.call('ZSCORE', lingering_key, preferred) or nil)
  if until_ms and until_ms > now_ms then
    redis.call('ZREM', lingering_key, preferred)
    reserved[preferred] = until_ms
  end
end

local posted = {}
for _, item in ipairs(records) do
  local job, executor, attempt, starts, assignment = item[1], item[2], item[3], item[4], item[5]
  if header[8] == 1 then
    redis.call('HSET', key_of(job, 'job'), 'opened', 1)
    redis.call('EXPIRE', key_of(job, 'job'), ttl)
  end
  local state = redis.call('HMGET', key_of(job, 'job'), 'opened', 'cancelled')
  if not state[1] or state[2] then break end
  local record = key_of(job, 'record:' .. executor)
  local known = redis.call('HMGET', record, 'attempt', 'starts')
  local known_attempt = tonumber(known[1] or nil)
  local gave = giver_attempt .. ':' .. starts
  local write, recipient = true, ''
  if giver_record and redis.call('HGET', giver_record, 'gave:' .. executor) == gave then
    write = false -- this attempt's call, repeated: the new executor may even have retired since
  elseif known_attempt and giver_record then
    -- The same name with other starts is not the same record. To count it as created would lose these starts,
    -- to refuse it leaves them with the giver.
    if known[2] ~= starts then break end
    write = false
  elseif known_attempt and known_attempt >= attempt then
    write = false
  elseif not known_attempt and redis.call('ZCARD', leases_key) >= ceiling then
    break
  end
  if write then
    if known_attempt then
      -- The supervisor starts the next attempt with a fresh assignment: what the last one gave away counts no more.
      redis.call('UNLINK', record)
    end
    create_record(job, executor, attempt, starts, assignment, lease_ms, ttl)
    if item[6] ~= '' and reserved[item[7]] then
      reserved[item[7]] = nil
      recipient = send(item[6], lease_ms, item[7])
    else
      recipient = post(item[6], lease_ms)
    end
    if recipient ~= '' then redis.call('HSET', record, 'recipient', recipient) end
  elseif known_attempt == attempt then
    recipient = redis.call('HGET', record, 'recipient') or '' -- a call that is repeated hears what it would have heard
  end
  if giver_record then redis.call('HSET', giver_record, 'gave:' .. executor, gave) end
  posted[#posted + 1] = recipient
end
for name, until_ms in pairs(reserved) do
  redis.call('ZADD', lingering_key, until_ms, name)
  redis.call('EXPIRE', lingering_key, ttl)
end
return posted
