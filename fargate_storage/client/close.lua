-- Remove a job's metadata. ARGV: job, limit. Reply: how many keys are left: call again until there are none.
-- The job's own key goes first, so from the first call on every executor is fenced and nothing new is made.

local job, limit = ARGV[1], tonumber(ARGV[2])
redis.call('UNLINK', key_of(job, 'job'), key_of(job, 'done'))
for _, child in ipairs(redis.call('SPOP', key_of(job, 'fan-ins'), limit)) do
  redis.call('UNLINK', key_of(job, 'fan-in:' .. child))
end
return forget_executors(job, limit) + redis.call('SCARD', key_of(job, 'fan-ins'))
