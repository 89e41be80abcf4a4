-- Send home everybody who lingers; executors that are at work now will not linger. ARGV: ttl, lease_ms.

redis.call('INCR', generation_key)
redis.call('EXPIRE', generation_key, ARGV[1])
while redis.call('ZCARD', lingering_key) > 0 do
  post('', ARGV[2])
end
