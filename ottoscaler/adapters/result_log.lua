-- == result_log.py: the result stream as the trace exporter reads it, by commands. Here is what it asks of tasks.

-- What is stored of tasks, for their spans: one call for all, since a command for each costs its caller more than all else.
-- KEYS: the tasks. ARGV: for each the names of its fields, with a space between two. Returns for each task what they hold.
function F.stored_times(...)
  return fields_of_tasks({...})
end

-- Store when the pods of workers were first seen to be gone: a span that is sent again, by whichever replica, ends at the same
-- time.
-- KEYS: for each worker its task. ARGV: for each its index. Returns for each that time, ms; 0 for a task that is not known.
function F.store_gone_time(...)
  local now, times = now_ms(), {}
  for n, i in ipairs({...}) do
    local task = nth_key(n)
    local _, stream_id, gone = fields_if_hash(task, 'sid', 'gone:' .. i)
    times[n] = tonumber(gone or now) or 0
    if not stream_id then
      -- written to a task that has expired, it would stay without end
      times[n] = 0
    elseif not gone then
      write('HSET', task, 'gone:' .. i, now)
    end
  end
  return times
end
