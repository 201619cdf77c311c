-- == result_log.py: the result stream as the trace exporter reads it. It is read by commands; here is what it writes.

-- Store when a worker's pod was first seen to be gone: a span that is sent again, by whichever replica, ends at the same time.
-- KEYS: task. ARGV: i (the worker's index). Returns that time, ms; 0 for a task that is not known.
function F.store_gone_time(i)
  local task = keys()
  local stream_id, gone = fields(task, 'sid', 'gone:' .. i)
  -- written to a task that has expired, it would stay without end
  if not stream_id then return 0 end
  if gone then return tonumber(gone) end
  local now = now_ms()
  write('HSET', task, 'gone:' .. i, now)
  return now
end
