-- What an executor had when it died. ARGV: job, executor.
-- Reply: the record's fields, {{child, parent, value, parent, value, ...}, ...} for what it has claimed; {} if unknown.

local job, executor = ARGV[1], ARGV[2]
local record = redis.call('HGETALL', key_of(job, 'record:' .. executor))
if #record == 0 then return {} end
local claims = {}
for _, child in ipairs(redis.call('SMEMBERS', key_of(job, 'claims:' .. executor))) do
  claims[#claims + 1] = {tonumber(child), redis.call('HGETALL', key_of(job, 'fan-in:' .. child))}
end
return {record, claims}
