-- What is about a task that has to be there: where it is not, Redis was wiped, and its owner will restore it.
if OF_A_TASK[ARGV[1]] and redis.call('EXISTS', KEYS[6]) == 0 then
  return redis.error_reply(string.format(FORGOTTEN, ARGV[5]))
end

return concluded(F[ARGV[1]](unpack(ARGV, 5)))
