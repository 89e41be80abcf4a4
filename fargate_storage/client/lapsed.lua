-- List records whose lease has run out. ARGV[1]: how many at most. Reply: {{job, executor, attempt, running}, ...}

local lapsed = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', leases_key, '-inf', now_ms, 'LIMIT', 0, tonumber(ARGV[1]))) do
  local cut = string.find(member, '\n', 1, true)
  local job, executor = string.sub(member, 1, cut - 1), string.sub(member, cut + 1)
  local record = redis.call('HMGET', key_of(job, 'record:' .. executor), 'attempt', 'running')
  if record[1] then
    lapsed[#lapsed + 1] = {job, executor, tonumber(record[1]), tonumber(record[2])}
  else
    redis.call('ZREM', leases_key, member) -- the record outlived its time to live: nobody waits for it
  end
end
return lapsed
