-- Linger no longer. ARGV: name, lease_ms. Reply: mail that was sent at the last moment, or nil.

local name = ARGV[1]
redis.call('ZREM', lingering_key, name)
local mail = redis.call('LMOVE', mail_key('mail', name), mail_key('taken', name), 'LEFT', 'RIGHT')
redis.call('PEXPIRE', mail_key('taken', name), ARGV[2])
-- A repeated call hears what the first one heard.
return mail or redis.call('LINDEX', mail_key('taken', name), 0)
