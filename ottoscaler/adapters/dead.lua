--[[ The writes of `dead`: one atomic step each, and idempotent, so that two callers at once, or one that repeats a call, do no
harm. The writes are planned (`write`, see atomic.lua). Commands of Redis 7.0 / Valkey only.
  KEYS  1 dead letter stream, 2 redriven (hash: dead letter's id -> the entry that it was sent again as), and for redrive
        3 event stream, 4 task hash of the event id that it is sent again under
  ARGV  1 function, 2 dead letter's id, 3… for redrive: the fields, names and values in turn ]]

local DEAD, REDRIVEN, ID = KEYS[1], KEYS[2], ARGV[2]

local F = {}

function F.redrive()
  -- the event id alone would not do: the same id with other changes would be a conflict, a dead letter of its own
  local first = redis.call('HGET', REDRIVEN, ID) or redis.call('HGET', KEYS[4], 'sid')
  if first then return {'known', first} end
  if #redis.call('XRANGE', DEAD, ID, ID) == 0 then return {'gone', ''} end
  write('XADD', KEYS[3], '*', unpack(ARGV, 3))
  write('HSET', REDRIVEN, ID, ADDED)
  local refused, sent = commit()
  return refused or {'sent', sent}
end

function F.purge()
  local there = #redis.call('XRANGE', DEAD, ID, ID) == 1
  write('XDEL', DEAD, ID)
  write('HDEL', REDRIVEN, ID)
  return {there and 'purged' or 'gone', ''}
end

return concluded(F[ARGV[1]]())
